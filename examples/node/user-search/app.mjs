// A search for users behind a Redis manager with ioredis, to be drilled as it stands:
//
//   npm ci
//   steadfast drill run scenario.toml --target 127.0.0.1:6379 --command 'node app.mjs 8001'
//
// The manager keeps a state, counts attempts and backs off with jitter; a read falls back to the database, a map here.

import http from 'node:http';
import { Redis } from 'ioredis';

class RedisManager {
  state = 'connecting';
  attempts = 0;
  history = [];

  constructor(url) {
    this.client = new Redis(url, {
      connectTimeout: 3000,
      commandTimeout: 1000,
      maxRetriesPerRequest: 1,
      enableOfflineQueue: false,
      retryStrategy: (attempt) => {
        this.attempts += 1;
        const pause = Math.min(100 * 2 ** attempt, 5000);
        return pause / 2 + Math.random() * (pause / 2);
      },
    });
    for (const state of ['connect', 'ready', 'close', 'reconnecting', 'end']) {
      this.client.on(state, () => this.note(state));
    }
    this.client.on('error', (error) => this.note(`error: ${error.message}`));
  }

  note(state) {
    this.state = state;
    this.history = [...this.history, { state, at: Date.now() }].slice(-100);
    console.log(state);
  }

  async attempt(work) {
    try {
      return await work(this.client);
    } catch {
      return undefined;
    }
  }
}

const redis = new RedisManager(process.env.REDIS_URL ?? 'redis://127.0.0.1:6379/0');
const users = new Map(Array.from({ length: 1000 }, (_, n) => [String(n + 1), `user ${n + 1}`]));

async function read(id) {
  const cached = await redis.attempt((client) => client.get(`user:${id}`));
  if (cached != null) return { id, name: cached, source: 'redis' };
  const name = users.get(id);
  if (name !== undefined) await redis.attempt((client) => client.set(`user:${id}`, name, 'EX', 360));
  return { id, name, source: 'database' };
}

async function change(id, name) {
  users.set(id, name);
  await redis.attempt((client) => client.del(`user:${id}`));
  return { id, name };
}

http
  .createServer(async (request, response) => {
    const id = request.url.match(/^\/users\/(\d+)$/)?.[1];
    let answer = { state: redis.state, attempts: redis.attempts, history: redis.history };
    if (id && request.method === 'PUT') {
      let body = '';
      for await (const chunk of request) body += chunk;
      answer = await change(id, JSON.parse(body).name);
    } else if (id) {
      answer = await read(id);
    }
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(answer));
  })
  .listen(Number(process.argv[2] ?? 8001), '127.0.0.1');
