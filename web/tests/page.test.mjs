// The page in a real browser, before the real program. Each test says what somebody who looks at it can rely on. Drills, and what goes away,
// have files of their own: several files run at once, each before a program of its own.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { axe, browser, Demo, headline, history, limits, live, open, serving } from './harness.mjs';

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

test('s5_the_first_view_shows_live_numbers_and_asks_nobody_else', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  await live(page);
  await headline(page, 'Ready. No calls yet.');
  await demo.ask(60);
  await serving(page);
  await page.waitForFunction(() => Number(document.querySelector('#f-rate').textContent) > 0);
  assert.match(await page.textContent('#f-p99'), /\d.*(µs|ms|s)/);
  assert.match(await page.textContent('#f-failed'), /^0/);
  assert.match(await page.getAttribute('#mix', 'aria-label'), /memory \d/);
  assert.ok(await page.locator('#calls-chart canvas').isVisible());
  await history(page, 'Connected to Redis').waitFor();
  const moving = await page.textContent('#link-text');
  assert.equal(moving, 'Live');
  // The other parts have asked for what they show.
  await page.locator('.offer').nth(10).waitFor();
  await page.locator('#settings-body details').nth(5).waitFor();
  await page.locator('#checks li').nth(3).waitFor();
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s12_numbers_that_no_double_holds_are_shown_as_they_are', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  const body =
    '{"query":"q","rows":[{"z":9007199254740993,"a":0.10,"t":"9007199254740993 \\" 1.0","d":{"n":-18446744073709551615}}],"truncated":false,"source":"memory","stale":false,"age_ms":3}';
  await page.route('**/v1/queries/**', (route) => route.fulfill({ contentType: 'application/json', body }));
  await page.click('#try-once');
  await page.locator('#try-result td').first().waitFor();
  assert.deepEqual(await page.locator('#try-result th').allTextContents(), ['z', 'a', 't', 'd']);
  assert.deepEqual(await page.locator('#try-result td').allTextContents(), [
    '9007199254740993',
    '0.10',
    '9007199254740993 " 1.0',
    '{"n":"-18446744073709551615"}',
  ]);
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s5_calls_to_redis_are_counted_apart_from_their_share', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  await live(page);
  // One route for the whole test: taking routes away while requests are under way can strand them.
  let told;
  await page.route('**/v1/status', async (route) => {
    const response = await route.fetch();
    const status = await response.json();
    [status.redis.success_rate, status.cache.counts.redis_errors] = told;
    await route.fulfill({ response, json: status });
  });
  for (const [share, failed, shown] of [
    [null, 0, 'none yet'],
    [0.998, 3, '99.8 %'],
  ]) {
    told = [share, failed];
    const row = (name, value) =>
      page
        .locator('#cache-facts div', { has: page.locator('dt', { hasText: name }) })
        .locator('dd', { hasText: value })
        .waitFor();
    await row(/^Redis calls answered in time$/, new RegExp(`^${shown.replace(' ', '\\s?')}$`));
    await row(/^Redis calls failed or late$/, new RegExp(`^${failed}$`));
  }
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s5_a_query_tried_on_the_page_tells_its_source', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  await page.fill('.fields input[name=q]', 'turing');
  await page.click('#try-once');
  await page.locator('#try-result .answer', { hasText: /From (memory|redis|database)/ }).waitFor();
  assert.match(await page.textContent('#try-result'), /Turing/);
  await page.fill('#try-times', '40');
  await page.click('#try-loop');
  await page.locator('#try-result .answer', { hasText: '40 of 40' }).waitFor();
  assert.match(await page.textContent('#try-result'), /memory (39|40)/);
  assert.deepEqual(wrong, []);
  await page.close();
});

test('t20_nodes_that_serve_together_have_a_room_with_the_state_of_each', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  await live(page);
  await page.locator('#redis-facts dd').first().waitFor();
  assert.equal(await page.locator('#nodes').isVisible(), false, 'one server is told of above');
  const node = (address, fields = {}) => ({
    address,
    role: 'primary',
    state: 'ready',
    lag_bytes: null,
    lag_ms: null,
    breaker: 'closed',
    can_take_over: null,
    slots: null,
    follows: null,
    ...fields,
  });
  const replica = (address, fields) => node(address, { role: 'replica', state: 'in_sync', breaker: null, ...fields });
  let servers = [
    node('10.0.0.1:6379', { breaker: 'half_open' }),
    replica('10.0.0.2:6379', { lag_bytes: 2048, can_take_over: true }),
    replica('10.0.0.3:6379', { state: 'away', can_take_over: false }),
  ];
  const sentinel = (address, fields = {}) => ({
    address,
    state: 'agrees',
    answered_ms_ago: 900,
    names: '10.0.0.1:6379',
    epoch: 4,
    error: null,
    ...fields,
  });
  let sentinels = {
    service: 'main',
    primary: '10.0.0.1:6379',
    epoch: 4,
    switches: 1,
    votes: 1,
    majority: 2,
    voters: 3,
    confirmed_ms_ago: 61_000,
    proof_within_ms: 5000,
    each: [
      sentinel('10.0.0.7:26379'),
      sentinel('10.0.0.8:26379', { state: 'disagrees', names: '10.0.0.9:6379', epoch: 3 }),
      sentinel('10.0.0.9:26379', {
        state: 'silent',
        answered_ms_ago: null,
        names: null,
        epoch: null,
        error: 'refused',
      }),
    ],
    replicas_known: true,
    not_allowed: ['ROLE'],
  };
  let shards = null;
  await page.route('**/v1/status', async (route) => {
    const response = await route.fetch();
    const status = await response.json();
    const nodes = { found_by: sentinels ? 'sentinel' : shards ? 'cluster' : 'single', servers, sentinels, shards };
    const message = '1 of 3 sentinels name 10.0.0.1:6379';
    if (shards) status.health.checks.shards = { status: 'degraded', latency_ms: null, message: '1 of 2 shards' };
    if (sentinels) status.health.checks.sentinels = { status: 'degraded', latency_ms: null, message };
    await route.fulfill({ response, json: { ...status, nodes } });
  });
  const rows = page.locator('#nodes-rows tr');
  await rows.nth(2).waitFor();
  const cells = (row) => row.locator('th, td').allTextContents();
  assert.deepEqual(await cells(rows.nth(0)), ['10.0.0.1:6379', 'primary', 'In service', '–', 'half-open']);
  assert.deepEqual(await cells(rows.nth(1)), ['10.0.0.2:6379', 'replica', 'In sync', '2\u00a0KiB', '–']);
  assert.deepEqual(await cells(rows.nth(2)), ['10.0.0.3:6379', 'replica, never promoted', 'Away', 'not known', '–']);
  const watching = page.locator('#sentinels-rows tr');
  assert.deepEqual(await cells(watching.nth(0)), ['10.0.0.7:26379', 'Agrees', '10.0.0.1:6379', '4', 'just now']);
  assert.deepEqual(await cells(watching.nth(1)), ['10.0.0.8:26379', 'Disagrees', '10.0.0.9:6379', '3', 'just now']);
  assert.deepEqual(await cells(watching.nth(2)), ['10.0.0.9:26379', 'Silent', '–', '–', 'never']);
  const told = await page.textContent('#nodes-said');
  for (const words of [
    'epoch 4, confirmed by a majority (2 of 3) 61\u00a0s ago. It has moved once',
    'Writes to Redis are refused until a majority confirms it',
    '10.0.0.8:26379 names 10.0.0.9:6379 instead, epoch 3.',
    '10.0.0.9:26379 does not answer: refused.',
    'ROLE not allowed',
  ]) {
    assert.ok(told.includes(words), `${words} in ${told}`);
  }
  assert.equal(await page.locator('#nodes-said a').getAttribute('href'), '/docs/operations#failover');
  await headline(page, 'no majority of sentinels');
  for (const width of [375, 1440]) {
    await page.setViewportSize({ width, height: 900 });
    // Charts are drawn anew a moment later.
    await page.waitForFunction((most) => document.documentElement.scrollWidth === most, width);
  }
  sentinels = null;
  shards = {
    primaries: 2,
    away: ['10.0.0.2:6379 (slots 8192-16000): connection refused'],
    alone: ['10.0.0.2:6379'],
    cache_slot: 9000,
    cache_away: true,
    uncovered: '16001-16383',
    uncovered_slots: 383,
    epoch: 7,
    heard_ms_ago: 400,
    error: null,
    from_replicas: { max_lag_ms: 500, served: 12, by_primaries: 1, replicas: 1, fit: 1, lag_ms: 90 },
  };
  servers = [
    node('10.0.0.1:6379', { slots: '0-8191' }),
    node('10.0.0.2:6379', { slots: '8192-16000', state: 'down' }),
    replica('10.0.0.3:6379', { slots: '', follows: '10.0.0.1:6379', lag_ms: 90 }),
  ];
  await page.locator('#nodes-state', { hasText: '1 of 2 shards serve' }).waitFor();
  const roles = await rows.locator('td:nth-child(2)').allTextContents();
  assert.deepEqual(roles, ['primary, slots 0-8191', 'primary, slots 8192-16000', 'replica of 10.0.0.1:6379']);
  const behind = await rows.locator('td:nth-child(4)').allTextContents();
  assert.deepEqual(behind, ['–', '–', 'at most 90\u00a0ms']);
  for (const words of [
    '10.0.0.2:6379 (slots 8192-16000): connection refused.',
    'Nobody owns the slots 16001-16383.',
    'All other keys are served.',
    'The cache’s shard (slot 9000) is away.',
    'nobody takes over: 10.0.0.2:6379',
    'replicas served 12, primaries 1 instead',
    'known by epoch 7',
  ]) {
    assert.ok((await page.textContent('#nodes-said')).includes(words), words);
  }
  shards = null;
  servers = [node('10.0.0.1:6379')];
  await page.locator('#nodes').waitFor({ state: 'hidden' });
  assert.deepEqual(wrong, []);
  await page.close();
});

for (const colorScheme of ['light', 'dark']) {
  for (const width of [375, 1440]) {
    test(`s5_anybody_can_read_it_${colorScheme}_and_${width}_wide`, limits, async () => {
      const { page, wrong } = await open(chromium, demo, { colorScheme, viewport: { width, height: 900 } });
      await live(page);
      await demo.ask(5);
      await serving(page);
      await page.locator('.offer').nth(10).waitFor();
      await page.locator('#checks li').nth(3).waitFor();
      await page.locator('#settings-body summary').first().click();
      assert.equal(
        await page.evaluate(() => document.documentElement.scrollWidth),
        width,
        'nothing is wider than the screen',
      );
      const dark = await page.evaluate(() => getComputedStyle(document.documentElement).colorScheme);
      assert.equal(dark, colorScheme);
      // By the debugger's door, which the page's policy does not close; the page itself may run nothing but its own files.
      const results = await page.evaluate(`${axe}; axe.run(document, { resultTypes: ['violations'] })`);
      const serious = results.violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
      assert.deepEqual(
        serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(' | ')}`),
        [],
      );
      assert.deepEqual(wrong, []);
      await page.close();
    });
  }
}

// 720 wide is what a screen of 1440 has at a zoom of 200 %.
for (const [width, height] of [
  [375, 44],
  [720, 44],
  [1440, 24],
]) {
  test(`s5_every_section_is_one_tap_away_and_targets_are_large_enough_${width}_wide`, limits, async () => {
    const { page, wrong } = await open(chromium, demo, { viewport: { width, height: 800 } });
    await live(page);
    await page.locator('.offer').nth(10).waitFor();
    await page.locator('#settings-body summary').first().waitFor();
    for (const name of ['speed', 'queries', 'connection', 'history', 'drills', 'try', 'settings']) {
      await page.click(`nav a[href="#${name}"]`);
      await page.waitForFunction((name) => {
        const { top } = document.getElementById(name).getBoundingClientRect();
        const bar = document.querySelector('.bar').getBoundingClientRect();
        const last = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
        return bar.top === 0 && (top >= bar.height - 1 || last) && top < innerHeight / 2;
      }, name);
    }
    const small = await page.evaluate((least) => {
      const asked = document.querySelectorAll('a[href], button, input, select, summary, label.control');
      return [...asked]
        .filter((element) => element.checkVisibility() && !element.matches('.skip, label.control input'))
        .map((element) => [element.outerHTML.slice(0, 90), element.getBoundingClientRect().height])
        .filter(([, tall]) => tall < least - 0.5);
    }, height);
    assert.deepEqual(small, []);
    assert.deepEqual(wrong, []);
    await page.close();
  });
}

test('s5_a_wide_screen_is_used_and_chosen_colours_keep_the_legend', limits, async () => {
  const { page, wrong } = await open(chromium, demo, { viewport: { width: 2560, height: 1300 } });
  await live(page);
  assert.ok((await page.evaluate(() => document.querySelector('.tiles').clientWidth)) > 2200);
  await page.waitForFunction(() => document.documentElement.scrollWidth === 2560);
  const colours = () =>
    page.evaluate(() =>
      [...document.querySelectorAll('#calls-legend .swatch')].map((swatch) => getComputedStyle(swatch).backgroundColor),
    );
  await page.emulateMedia({ forcedColors: 'active', reducedMotion: 'reduce' });
  assert.equal(new Set(await colours()).size, 4);
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s5_the_last_hour_can_be_read_back_minute_by_minute', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  await live(page);
  await demo.ask(5);
  await page.click('[data-span="3600"]');
  await page.waitForFunction(() =>
    /the last 60.min, a point a minute$/.test(document.querySelector('#speed-window').textContent),
  );
  await page.waitForFunction(() =>
    /\d calls in/.test(document.querySelector('#calls-chart').getAttribute('aria-label')),
  );
  assert.match(await page.textContent('#bands-words'), /1 start/);
  assert.ok(await page.locator('#later').isDisabled());
  await page.click('[data-span="0"]');
  await page.waitForFunction(() => /a point a second$/.test(document.querySelector('#speed-window').textContent));
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s5_the_history_has_dates_and_can_be_searched_and_copied', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  await live(page);
  await history(page, 'Connected to Redis').first().waitFor();
  const [year] = (await page.getAttribute('#history-rows time', 'datetime')).split('-');
  assert.ok(Number(year) > 2000);
  assert.match(await page.textContent('#history-rows time'), /^\d+ \w+, \d\d:\d\d:\d\d$/);
  await page.fill('#history-search', 'connected to');
  await page.waitForFunction(() =>
    [...document.querySelectorAll('#history-rows th')].every((row) => /Connected to/.test(row.textContent)),
  );
  await page.evaluate(() => {
    navigator.clipboard.writeText = (text) => Promise.resolve(void (window.copied = text));
  });
  await page.click('#history-copy');
  await page.waitForFunction(() => /Connected to Redis: /.test(window.copied ?? ''));
  await page.fill('#history-search', 'nothing is called so');
  await page.locator('#history-empty', { hasText: 'Nothing of this kind' }).waitFor();
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s5_flapping_outages_and_each_query_have_their_place', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  const query = { calls: 40, memory: 30, redis: 2, database: 4, failed: 4, stale: 1, slow: 0, p50_ms: 0.2, p99_ms: 12 };
  const began_ms = Date.now() - 600_000;
  const told = {
    queries: [
      {
        name: 'slow_report',
        last_minute: { ...query, window_ms: 60_000 },
        since_start: { ...query, calls: 4321, window_ms: 900_000 },
      },
    ],
    statements: [],
    outages: [
      {
        of: 'redis',
        began_ms,
        ended_ms: began_ms + 12_400,
        ended_by: 'reconnected',
        cause: 'connection refused',
        detection_ms: 512,
        attempts: 41,
        flapping: false,
        times: 1,
        refused: 17,
        unknown: 2,
        calls: 480,
        failed: 3,
        stale: 20,
        slow: 1,
        writes: 4,
        writes_failed: 0,
      },
    ],
  };
  const flapping = {
    since_ms: began_ms,
    reconnects: 732,
    last_ms: began_ms + 1000,
    cause: 'the server closed the connection',
  };
  await page.route('**/v1/status', async (route) => {
    const response = await route.fetch();
    const status = await response.json();
    await route.fulfill({ response, json: { ...status, ...told, redis: { ...status.redis, flapping } } });
  });
  await headline(page, 'Serving; Redis flaps.');
  await page.locator('#detail', { hasText: /732 times since .*the server closed the connection/ }).waitFor();
  assert.equal(await page.getAttribute('#advice a', 'href'), '/docs/operations#flapping');
  const row = page.locator('#usage-rows tr', { hasText: 'slow_report' });
  await row.waitFor();
  const cells = (await row.locator('td').allTextContents()).map((cell) => cell.replace(/\s/g, ' '));
  assert.deepEqual(cells, ['40', '4', '200 µs', '12 ms', '83.3 %', '5.6 %', '11.1 %', '1', '4 321', '4']);
  const outage = page.locator('#incidents li', { hasText: 'Redis was away' });
  await outage.waitFor();
  await page.evaluate(() => {
    navigator.clipboard.writeText = (text) => Promise.resolve(void (window.copied = text));
  });
  await outage.locator('button', { hasText: 'Copy as text' }).click();
  await page.waitForFunction(() => /^Noticed: after 512 ms of silence$/m.test(window.copied ?? ''));
  const copied = await page.evaluate(() => window.copied);
  for (const words of [
    'Cause: Connection refused',
    'Calls refused at once: 17',
    'Outcomes unknown: 2',
    'Recovery: by a new connection, after 12.4 s',
  ]) {
    assert.ok(copied.includes(words), copied);
  }
  // On the charts it lies behind the curves of its hour.
  await outage.locator('button', { hasText: 'Show on the charts' }).click();
  await page.waitForFunction(() => /1 outage of Redis/.test(document.querySelector('#bands-words').textContent));
  assert.equal(await page.getAttribute('[data-span="3600"]', 'aria-pressed'), 'true');
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s5_what_the_service_says_is_what_the_page_understands', limits, async () => {
  await demo.ask(3);
  const json = async (path) => (await fetch(`${demo.url}${path}`)).text();
  const parts = {
    Status: await json('/v1/status'),
    Minute: JSON.stringify(JSON.parse(await json('/v1/minutes')).minutes.at(-1)),
  };
  const events = await fetch(`${demo.url}/v1/events`);
  let told = '';
  for await (const piece of events.body.pipeThrough(new TextDecoderStream())) {
    told += piece;
    parts.Tick = /event: tick\ndata: (.*)\n\n/.exec(told)?.[1];
    if (parts.Tick) break;
  }
  const folder = await mkdtemp(join(tmpdir(), 'steadfast-wire-'));
  // A literal may have no field that its type does not name, and must have all that it does.
  const wire = fileURLToPath(new URL('../src/wire', import.meta.url));
  const lines = Object.entries(parts).map(([name, text]) => `export const a${name}: wire.${name} = ${text};`);
  await writeFile(join(folder, 'said.ts'), `import type * as wire from '${wire}';\n${lines.join('\n')}\n`);
  const config = { extends: fileURLToPath(new URL('../tsconfig.json', import.meta.url)), include: ['said.ts'] };
  await writeFile(join(folder, 'tsconfig.json'), JSON.stringify(config));
  const tsc = fileURLToPath(new URL('../node_modules/.bin/tsc', import.meta.url));
  const checked = spawnSync(tsc, ['-p', folder], { encoding: 'utf8' });
  await rm(folder, { recursive: true });
  assert.equal(checked.stdout, '', 'a field that the service has told of late belongs into web/src/wire.ts');
  assert.equal(checked.status, 0, checked.stderr);
});

test('s5_the_theme_can_be_chosen_and_is_kept', limits, async () => {
  const { page } = await open(chromium, demo, { colorScheme: 'light' });
  await page.click('#theme');
  await page.click('#theme');
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'dark');
  await page.reload();
  assert.equal(await page.evaluate(() => getComputedStyle(document.documentElement).colorScheme), 'dark');
  await page.close();
});

test('s5_a_token_can_be_given_and_is_sent', limits, async () => {
  const { page } = await open(chromium, demo);
  await page.route('**/v1/**', (route) => {
    if (route.request().headers().authorization === 'Bearer let-me-in') return route.continue();
    return route.fulfill({
      status: 401,
      contentType: 'application/problem+json',
      body: JSON.stringify({ detail: 'a bearer token is needed' }),
    });
  });
  await page.reload();
  await headline(page, 'needs a token');
  await page.fill('#token', 'let-me-in');
  await page.keyboard.press('Enter');
  await live(page);
  await page.locator('.offer').first().waitFor();
  await page.close();
});
