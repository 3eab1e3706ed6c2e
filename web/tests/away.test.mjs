// What the page shows when calls, Redis, its primary or the service go away and come back.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { axe, browser, Demo, headline, history, limits, live, open, serving } from './harness.mjs';
import { Watched } from './watched.mjs';

let chromium;
let demo;

before(
  async () => {
    [chromium, demo] = await Promise.all([browser(), Demo.start()]);
  },
  { timeout: 600_000 },
);

after(async () => {
  await chromium?.close();
  await demo?.stop();
});

test('t20_a_failover_of_real_servers_is_seen_with_its_cost_and_the_nodes_change_places', limits, async () => {
  const watched = await Watched.start();
  try {
    const { page, wrong } = await open(chromium, watched);
    await live(page);
    const { primary, replica, sentinels } = watched.ports;
    const rows = page.locator('#nodes-rows tr');
    const row = (number, words) => rows.nth(number).filter({ hasText: words });
    await row(0, `127.0.0.1:${primary}primaryIn service`).waitFor();
    await row(1, `127.0.0.1:${replica}replicaIn sync`).waitFor();
    await page.locator('#nodes-state', { hasText: '3 of 3 sentinels agree' }).waitFor();
    assert.equal(await page.locator('#sentinels-rows tr', { hasText: 'Agrees' }).count(), 3);
    assert.match(await page.textContent('#nodes-said'), new RegExp(`primary of “main” is 127.0.0.1:${primary}, epoch`));
    await watched.failOver();
    await row(0, `127.0.0.1:${replica}primaryIn service`).waitFor();
    await row(1, `127.0.0.1:${primary}replicaIn sync`).waitFor();
    await history(page, /Redis failed over/).waitFor();
    await page.locator('#last', { hasText: 'Redis failed over' }).waitFor();
    await page.locator('#nodes-said', { hasText: 'It has moved once' }).waitFor();
    const found = await page.evaluate(`${axe}; axe.run('#nodes', { resultTypes: ['violations'] })`);
    assert.deepEqual(
      found.violations.map(({ id }) => id),
      [],
    );
    assert.equal(sentinels.length, 3);
    assert.deepEqual(wrong, []);
    await page.close();
  } finally {
    await watched.stop();
  }
});

test('s5_calls_from_before_the_page_was_opened_are_not_denied', limits, async () => {
  await demo.ask(5);
  const { page, wrong } = await open(chromium, demo);
  // Once they are no longer of the last seconds.
  await headline(page, 'Ready. No calls just now.');
  // What is said of a busy machine is said in its stead.
  await page.waitForFunction(() =>
    /calls since the start; the next will show/.test(document.querySelector('#detail').textContent),
  );
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s5_a_redis_that_goes_away_is_told_in_plain_words', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  await live(page);
  await page.waitForFunction(() => document.querySelector('#spoken').textContent !== '');
  await page.evaluate(() => {
    window.spoken = [];
    const note = (changes) => window.spoken.push(...changes.map(({ target }) => target.textContent));
    for (const region of document.querySelectorAll('[aria-live=polite], [role=status], [role=alert]')) {
      new MutationObserver(note).observe(region, { childList: true, characterData: true, subtree: true });
    }
    window.moved = 0;
    new PerformanceObserver((list) => {
      for (const shift of list.getEntries()) if (!shift.hadRecentInput) window.moved += shift.value;
    }).observe({ type: 'layout-shift', buffered: false });
  });
  process.kill(demo.redis, 'SIGKILL');
  await headline(page, 'Serving without Redis');
  await page.waitForFunction(() =>
    /away for .*: .*(refused|reset|closed|ended)/i.test(document.querySelector('#detail').textContent),
  );
  await history(page, 'Connection to Redis lost').first().waitFor();
  // However many attempts there are, it is one thing that happened.
  await page.locator('#last li:first-child', { hasText: /Redis is away.*attempts so far/s }).waitFor();
  assert.equal(await page.locator('#last li', { hasText: 'Could not connect' }).count(), 0);
  await page.waitForSelector('.station.redis[data-mood=bad]');
  await demo.ask(20);
  // Who listens is told the state, once, and none of the figures that change every second.
  await page.waitForFunction(() => window.spoken.includes('Serving without Redis.'));
  await page.waitForTimeout(5_000);
  const spoken = await page.evaluate(() => window.spoken);
  assert.ok(spoken.length <= 2, `${spoken.join(' | ')}`);
  assert.ok(
    spoken.every((words) => !/\d/.test(words)),
    `${spoken.join(' | ')}`,
  );
  assert.ok((await page.evaluate(() => window.moved)) < 0.05, 'nothing jumps while the hour grows worse');
  // What to do is one tap away, at the section that speaks of it.
  await page.click('#advice a');
  await page.waitForFunction(() => document.activeElement?.id === 'redis-down');
  assert.match(await page.textContent('#runbook'), /Bring Redis back/);
  assert.equal(new URL(page.url()).pathname, '/docs/operations');
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s5_it_survives_the_restart_of_the_service_and_resumes', limits, async () => {
  const { page } = await open(chromium, demo);
  await live(page);
  await history(page, 'Service started').first().waitFor();
  const before = await history(page, 'Service started').count();
  await page.waitForFunction(() => / of /.test(document.querySelector('#f-failed').textContent.replace(/\s/g, ' ')));
  await demo.stop();
  await headline(page, 'No contact');
  assert.ok(await page.locator('#retry').isVisible());
  const resumed = page.waitForRequest(
    (request) => request.url().endsWith('/v1/events') && Boolean(request.headers()['last-event-id']),
  );
  demo = await Demo.start(demo.address);
  await resumed;
  await live(page);
  await headline(page, 'Ready');
  // What the process before it counted is no figure of this one.
  await page.waitForFunction(() => document.querySelector('#f-failed').textContent === '0');
  await page.waitForFunction(
    (before) =>
      [...document.querySelectorAll('#history-rows th')].filter((row) => row.textContent === 'Service started').length >
      before,
    before,
  );
  await demo.ask(10);
  await serving(page);
  await page.close();
});
