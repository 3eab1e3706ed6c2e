// Drills on the page, before the real program.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { browser, Demo, limits, live, open, PATIENCE } from './harness.mjs';

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

/** What a drill runs beside each other unless it is told otherwise. */
const SIDES = ['With Steadfast', 'Without resilience', 'Built by hand'];

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
  assert.deepEqual(await page.locator('.side h4').allTextContents(), SIDES);
  await page.waitForSelector('#verdict', { timeout: 2 * PATIENCE });
  assert.match(await page.textContent('#verdict'), /^(Passed|Failed)$/);
  assert.deepEqual((await page.locator('.kpis thead th').allTextContents()).slice(2), SIDES);
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

test('s5_a_second_control_has_a_column_and_a_drill_that_proved_nothing_says_so', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  const live = {
    ...{ calls: 900, failed: 30, skipped: 0, rate: 100, memory: 400, redis: 400, database: 70, stale: 0, wrong: 0 },
    ...{ connection: 'ready', breaker: 'closed' },
  };
  const about = 'Told by the test.';
  const drill = {
    ...{ id: 99, scenario: 'crash', about, control: true, hand_built: true, started_ms: Date.now(), state: 'void' },
    progress: {
      ...{ elapsed_ms: 900, total_ms: 900, phase: 'recovered', broken: [] },
      ...{ subject: live, control: live, hand_built: live },
    },
  };
  const kpi = { phase: 'fault', unit: 'count', bound: 'at_most', formula: '', target: 0 };
  const side = {
    ...{ scenario: 'crash', about, verdict: 'void', recovery: {}, control: null, hand_built: null },
    phases: [{ name: 'fault', calls: 900, ok: 870, skipped: 0, errors: { refused: 30 }, latency_ms: {} }],
    kpis: [
      { ...kpi, name: 'untouched', value: 1, pass: false },
      {
        ...kpi,
        name: 'users_well',
        unit: 'ms',
        bound: 'below',
        phase: 'recovery',
        target: 1000,
        value: 312.4,
        pass: true,
      },
      { ...kpi, name: 'connection_success', unit: 'ratio', phase: 'baseline, recovered', value: 0.9876, pass: false },
    ],
  };
  await page.route('**/v1/drills', async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, json: { ...(await response.json()), drills: [drill] } });
  });
  await page.route('**/v1/drills/99/report**', (route) =>
    route.request().url().includes('format=html')
      ? route.fulfill({ contentType: 'text/html', body: '<h1>Report</h1>' })
      : route.fulfill({ json: { ...side, control: side, hand_built: side } }),
  );
  await page.reload();
  await page.locator('.runs button', { hasText: 'Show' }).click();
  await page.waitForSelector('#verdict');
  assert.equal(await page.textContent('#verdict'), 'Proves nothing');
  assert.match(await page.textContent('.verdict'), /touched nothing.*Built by hand 30 did/);
  assert.deepEqual((await page.locator('.kpis thead th').allTextContents()).slice(2), SIDES);
  assert.deepEqual(await page.locator('.side h4').allTextContents(), SIDES);
  for (const width of [375, 720, 900, 1440]) {
    await page.setViewportSize({ width, height: 900 });
    await page.waitForFunction((most) => document.documentElement.scrollWidth === most, width);
    // No column of the figures is cut off: not even beside one that fills its row.
    const cut = await page.evaluate(() => {
      const { right } = document.querySelector('.stage').getBoundingClientRect();
      return [...document.querySelectorAll('.kpis th, .kpis td')]
        .filter((cell) => cell.checkVisibility() && cell.getBoundingClientRect().right > right)
        .map((cell) => cell.textContent);
    });
    assert.deepEqual(cut, [], `${width} wide`);
    if (process.env.SHOTS) await page.locator('.stage').screenshot({ path: `${process.env.SHOTS}/drill-${width}.png` });
  }
  assert.deepEqual(wrong, []);
  await page.close();
});

test('s5_what_runs_beside_a_drill_is_chosen_and_stays_chosen', limits, async () => {
  const { page, wrong } = await open(chromium, demo);
  const orders = [];
  await page.route('**/v1/drills', async (route) => {
    if (route.request().method() !== 'POST') return route.continue();
    orders.push(route.request().postDataJSON());
    return route.fulfill({ status: 409, json: { detail: 'another drill is running' } });
  });
  const start = async () => {
    await page.click('[data-drill="loop"]');
    await page.locator('#drill-problem', { hasText: 'another drill is running' }).waitFor();
  };
  await start();
  await page.uncheck('#control');
  await page.fill('#loop-calls', '70');
  await start();
  await page.uncheck('#by-hand');
  await page.click('[data-drill="crash"]');
  await page.waitForFunction(() => document.querySelector('#drill-problem').textContent !== '');
  assert.deepEqual(orders, [
    { scenario: 'loop', control: true, hand_built: true, calls: 1000 },
    { scenario: 'loop', control: false, hand_built: true, calls: 70 },
    { scenario: 'crash', control: false, hand_built: false },
  ]);
  assert.deepEqual(
    wrong.filter((line) => !line.includes('409')),
    [],
  );
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
