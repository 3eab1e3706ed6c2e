// A service whose Redis is watched: a primary, a replica and three sentinels, and the real program in front of them, all ended with the test.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PATIENCE, program } from './harness.mjs';

/** Sentinels look and talk more often than by default, so that nobody waits for them. */
const QUICK = 'SENTINEL DEBUG ping-period 100 info-period 200 ask-period 100 publish-period 300 election-timeout 1000';

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  await new Promise((closed) => server.close(closed));
  return port;
}

/** Says one line to a server and gives what comes back first. */
async function tell(port, line) {
  const socket = connect(port, '127.0.0.1');
  socket.write(`${line}\r\n`);
  try {
    const [said] = await once(socket, 'data');
    return String(said);
  } finally {
    socket.destroy();
  }
}

export async function until(what, holds) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    if (await Promise.resolve(holds()).catch(() => false)) return;
    if (Date.now() > end) throw new Error(`never so: ${what}`);
    await new Promise((next) => setTimeout(next, 50));
  }
}

export class Watched {
  processes = [];

  static async start() {
    const watched = new Watched();
    watched.folder = await mkdtemp(join(tmpdir(), 'steadfast-watched-'));
    try {
      await watched.launch();
      return watched;
    } catch (error) {
      await watched.stop();
      throw error;
    }
  }

  async launch() {
    const [primary, replica, ...sentinels] = await Promise.all(Array.from({ length: 5 }, freePort));
    this.ports = { primary, replica, sentinels };
    await this.redis(primary, ['save ""', 'repl-diskless-sync-delay 0']);
    this.primary = this.processes.at(-1);
    await this.redis(replica, ['save ""', `replicaof 127.0.0.1 ${primary}`]);
    await until('the replica is online', async () =>
      (await tell(primary, 'INFO replication')).includes('state=online'),
    );
    for (const port of sentinels) {
      const watch = [
        `sentinel monitor main 127.0.0.1 ${primary} 2`,
        // Failovers are asked for: on a busy machine nobody is to be voted out for half a second.
        'sentinel down-after-milliseconds main 5000',
        'sentinel failover-timeout main 3000',
      ];
      await this.redis(port, watch, ['--sentinel']);
      await tell(port, QUICK);
    }
    for (const port of sentinels) {
      const known = async () => {
        const said = await tell(port, 'SENTINEL MASTER main');
        return /num-slaves\r\n\$\d+\r\n1/.test(said) && /num-other-sentinels\r\n\$\d+\r\n2/.test(said);
      };
      await until('each sentinel knows the others', known);
    }
    await this.serve();
  }

  async redis(port, lines, args = []) {
    const folder = await mkdtemp(join(this.folder, 'redis-'));
    const file = join(folder, 'redis.conf');
    await writeFile(file, ['bind 127.0.0.1', `port ${port}`, `dir "${folder}"`, ...lines, ''].join('\n'));
    this.processes.push(spawn('redis-server', [file, ...args], { stdio: 'ignore' }));
    await until(`redis-server answers at ${port}`, async () => (await tell(port, 'PING')).includes('PONG'));
  }

  async serve() {
    const port = await freePort();
    const hosts = this.ports.sentinels.map((port) => `127.0.0.1:${port}`).join();
    const file = join(this.folder, 'steadfast.toml');
    const settings = [
      `server.listen = "127.0.0.1:${port}"`,
      `redis.url = "redis-sentinel://${hosts}/main"`,
      `database.url = "sqlite://${join(this.folder, 'a.db')}"`,
    ];
    await writeFile(file, settings.join('\n'));
    this.processes.push(spawn(program(), ['serve', '--config', file], { stdio: 'ignore' }));
    this.url = `http://127.0.0.1:${port}`;
    await until('the service serves', async () => (await fetch(`${this.url}/health/ready`)).ok);
  }

  get address() {
    return new URL(this.url).host;
  }

  /** A planned failover, by the first sentinel. */
  failOver() {
    return tell(this.ports.sentinels[0], 'SENTINEL FAILOVER main');
  }

  async stop() {
    for (const process of this.processes.reverse()) {
      if (process.exitCode !== null || process.signalCode !== null) continue;
      process.kill('SIGKILL');
      await once(process, 'exit');
    }
    await rm(this.folder, { recursive: true, force: true });
  }
}
