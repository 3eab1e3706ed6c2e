// The load of failover.rs through ioredis's client for sentinels, on its defaults but for a time-out, without which it waits for ever.
const Redis = require('ioredis');

const [seeds, ...numbers] = process.argv.slice(2);
const [start, callers, turn, length] = numbers.map(Number);
const now = () => Math.round((performance.timeOrigin + performance.now()) * 1000);
const sleep = (micros) => new Promise((done) => setTimeout(done, Math.max(0, micros) / 1000));

async function caller(client, number, calls) {
  let due = Math.floor((turn * number) / callers);
  for (let count = 0; due <= length; count += 1) {
    await sleep(start + due - now());
    const begun = now();
    let outcome = 'ok';
    try {
      await client.incr(`n:${number}:${count}`);
    } catch {
      outcome = 'failed'; // whether it was applied is not told
    }
    calls.push(`${number} ${count} ${begun} ${now()} ${outcome}`);
    do due += turn;
    while (start + due <= now());
  }
}

async function main() {
  const sentinels = seeds.split(',').map((seed) => {
    const [host, port] = seed.split(':');
    return { host, port: Number(port) };
  });
  const client = new Redis({ sentinels, name: 'main', commandTimeout: 1000 });
  client.on('error', () => {});
  await client.ping();
  const calls = [];
  await Promise.all(Array.from({ length: callers }, (_, number) => caller(client, number, calls)));
  process.stdout.write(`${calls.join('\n')}\n`, () => process.exit(0));
}

main();
