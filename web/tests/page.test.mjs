// The page in a real browser, before the real program. Each test says what somebody who looks at it can rely on.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { differences } from '../build.mjs';
import { browser, Demo, open, PATIENCE } from './harness.mjs';

const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
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

const limits = { timeout: 4 * PATIENCE };

const headline = (page, words) =>
  page.waitForFunction((words) => document.querySelector('#headline').textContent.includes(words), words);
const live = (page) => page.waitForSelector('body[data-link=live]');
const history = (page, words) => page.locator('#history-rows tr', { hasText: words });

test('s5_the_committed_page_is_what_its_sources_give', async () => {
  assert.deepEqual(await differences(), []);
});

test('s5_the_first_view_shows_live_numbers_and_asks_nobody_else', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  await live(page);
  await headline(page, 'Ready. No calls yet.');
  await demo.ask(60);
  await headline(page, 'Serving from');
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

test('s5_calls_from_before_the_page_was_opened_are_not_denied', limits, async () => {
  await demo.ask(5);
  const { page, wrong } = await open(chromium, demo);
  // Once they are no longer of the last seconds.
  await headline(page, 'Ready. No calls just now.');
  // What is said of a busy machine is said in its stead.
  await page.waitForFunction(() =>
    /calls since the start; the next will show|One thing to watch/.test(document.querySelector('#detail').textContent),
  );
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

test('s5_a_drill_started_from_the_page_runs_to_its_verdict', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  const other = await open(chromium, demo);
  await live(other.page);
  await page.click('[data-drill="blip-100ms"]');
  // Whoever else looks sees it too.
  await other.page.locator('.stage h3', { hasText: 'Blip' }).waitFor();
  await page.waitForFunction(
    () => Number(document.querySelector('[role=progressbar]')?.getAttribute('aria-valuenow')) > 5,
  );
  assert.equal(await page.locator('.side').count(), 2);
  await page.waitForSelector('#verdict', { timeout: 2 * PATIENCE });
  assert.match(await page.textContent('#verdict'), /^(Passed|Failed)$/);
  assert.match(await page.textContent('.kpis thead'), /With Steadfast.*Without resilience/);
  assert.ok((await page.locator('.kpis tbody tr').count()) >= 5);
  // The report is open beneath, as the file that can be forwarded.
  assert.equal(await page.getAttribute('#whole-report', 'open'), '');
  await page.locator('#whole-report iframe').scrollIntoViewIfNeeded();
  await page.frameLocator('#whole-report iframe').locator('h1').waitFor();
  await page.locator('#last li', { hasText: /Drill (passed|failed): blip/ }).waitFor();
  await other.page.waitForSelector('#verdict');
  await other.page.close();
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s5_keyboard_alone_suffices', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  await live(page);
  await page.locator('[data-drill=crash]:not([disabled])').waitFor();
  await page.locator('#try-once').waitFor();
  await page.locator('#settings-body summary').first().waitFor();
  await page.keyboard.press('Tab');
  assert.match(await page.evaluate(() => document.activeElement.textContent), /^Skip/);
  const wanted = await page.evaluate(
    () =>
      [...document.querySelectorAll('a[href], button:not([disabled]), input, select, summary')].filter((element) =>
        element.checkVisibility(),
      ).length,
  );
  const seen = new Set();
  for (let n = 0; n < wanted + 40; n += 1) {
    const focus = await page.evaluate(() => {
      const element = document.activeElement;
      element.dataset.reached ??= String(Math.random());
      const { outlineStyle, outlineWidth } = getComputedStyle(element);
      return {
        key: element.dataset.reached,
        name: element.outerHTML.slice(0, 80),
        body: element === document.body,
        outline: outlineStyle !== 'none' && parseFloat(outlineWidth) >= 1,
      };
    });
    if (focus.body || (seen.has(focus.key) && seen.size >= wanted)) break;
    assert.ok(focus.outline, `focus is visible on ${focus.name}`);
    seen.add(focus.key);
    await page.keyboard.press('Tab');
  }
  const missed = await page.evaluate(() =>
    [...document.querySelectorAll('a[href], button:not([disabled]), input, select, summary')]
      .filter((element) => element.checkVisibility() && !element.dataset.reached)
      .map((element) => element.outerHTML.slice(0, 80)),
  );
  assert.deepEqual(missed, []);

  await page.focus('[data-drill=crash]');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => document.activeElement?.classList.contains('stage'));
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'drill-stop');
  await page.keyboard.press('Enter');
  await page.locator('.stage .pill', { hasText: 'Stopped' }).waitFor();
  assert.deepEqual(wrong, []);
  await page.close();
});

for (const colorScheme of ['light', 'dark']) {
  for (const width of [375, 1440]) {
    test(`s5_anybody_can_read_it_${colorScheme}_and_${width}_wide`, limits, async () => {
      const { page, wrong } = await open(chromium, demo, { colorScheme, viewport: { width, height: 900 } });
      await live(page);
      await demo.ask(5);
      await headline(page, 'Serving');
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

test('s5_a_redis_that_goes_away_is_told_in_plain_words', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  await live(page);
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
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s5_it_survives_the_restart_of_the_service_and_resumes', limits, async () => {
  const { page } = await open(chromium, demo);
  await live(page);
  await history(page, 'Service started').first().waitFor();
  const before = await history(page, 'Service started').count();
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
  await page.waitForFunction(
    (before) =>
      [...document.querySelectorAll('#history-rows th')].filter((row) => row.textContent === 'Service started').length >
      before,
    before,
  );
  await demo.ask(10);
  await headline(page, 'Serving from');
  await page.close();
});
