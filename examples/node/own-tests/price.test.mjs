// Tests that break the Redis of an application and assert what a user gets:
//
//   npm install
//   steadfast drill proxy --api 127.0.0.1:8474 &
//   node --test price.test.mjs
//
// They speak Toxiproxy's API by a client that is published for it, so they run before Toxiproxy too.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, test } from 'node:test';
import { Redis } from 'ioredis';
import { Toxiproxy } from 'toxiproxy-node-client';

const upstream = process.env.REDIS_ADDR ?? '127.0.0.1:6379';
const server = new Toxiproxy(`http://${process.env.TOXIPROXY_ADDR ?? '127.0.0.1:8474'}`);
const key = `price:${randomUUID()}`;

const connect = (address, limit) => {
  const [host, port] = address.split(':');
  const limits = { connectTimeout: limit, commandTimeout: limit, maxRetriesPerRequest: 0 };
  const client = new Redis({ host, port: Number(port), ...limits, retryStrategy: null });
  client.on('error', () => {}); // the call itself tells
  return client;
};

// The application: today's price from Redis, or else the list price.
async function todaysPrice(address) {
  const client = connect(address, 1_000);
  try {
    return (await client.get(key)) ?? 'list price';
  } catch {
    return 'list price';
  } finally {
    client.disconnect();
  }
}

// A way to Redis that can be broken, new for each test.
let proxy;
beforeEach(async () => {
  const well = connect(upstream, 20_000); // what is well may be busy
  try {
    await well.set(key, '3', 'EX', 600);
  } finally {
    well.disconnect(); // one that stays open keeps node from ending
  }
  const name = `test-${randomUUID()}`;
  proxy = await server.createProxy({ name, upstream, listen: '127.0.0.1:0' });
});
afterEach(() => proxy?.remove());

async function userGets(expected) {
  const asked = performance.now();
  assert.equal(await todaysPrice(proxy.listen), expected);
  assert.ok(performance.now() - asked < 5000, 'whatever Redis does, a user does not wait longer');
}

test('all is well', () => userGets('3'));

test('Redis is down and comes back', async () => {
  await proxy.update({ enabled: false, listen: proxy.listen, upstream });
  await userGets('list price');
  await proxy.update({ enabled: true, listen: proxy.listen, upstream });
  await userGets('3');
});

const toxics = {
  latency: { latency: 10_000, jitter: 0 },
  timeout: { timeout: 0 },
  resp_error: { error: 'loading', commands: ['GET'] }, // not in Toxiproxy
};
for (const [type, attributes] of Object.entries(toxics)) {
  test(`Redis does not answer as it should: ${type}`, async () => {
    await proxy.addToxic({ name: 'trouble', type, stream: 'downstream', toxicity: 1, attributes });
    await userGets('list price');
  });
}
