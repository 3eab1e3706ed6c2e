// What the page says of a state, without a browser: figures in, sentences out.
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const bundle = await build({
  stdin: {
    contents: `export * from './words'; export * from './events'; export * from './incidents'; export * from './report'; export * from './store'; export { said, saidOfShards } from './nodes'; export { markdown, slug } from './markdown';`,
    resolveDir: fileURLToPath(new URL('../src', import.meta.url)),
  },
  bundle: true,
  write: false,
  format: 'esm',
});
const page = await import(
  `data:text/javascript;base64,${Buffer.from(bundle.outputFiles[0].contents).toString('base64')}`
);

const NONE = {
  memory: 0,
  redis: 0,
  database: 0,
  failed: 0,
  stale: 0,
  slow: 0,
  writes: 0,
  writes_failed: 0,
  answered: 0,
  calls: 0,
  seconds: 10,
};
const TICK = { phase: 'serving', status: 'healthy', redis: 'ready', breaker: 'closed', rtt_ms: 0.2, p99_10s_ms: 1 };
const check = (status, message) => ({ status, message, latency_ms: null });
const STATUS = {
  service: { notice: null },
  health: { checks: { redis: check('healthy', 'in service'), reads: check('healthy', 'reads are answered') } },
  reads: { memory: 90, redis: 5, database: 5, failed: 0, stale: 0, writes: 0 },
  redis: { state: 'ready', state_for_ms: 1000, last_error: null },
  cache: { redis: { suspended: null } },
};
const SERVING = { ...NONE, memory: 90, redis: 5, database: 5, answered: 100, calls: 100 };

function headline({ tick = {}, status = {}, recent = SERVING, written = recent, link = { state: 'live' } } = {}) {
  return page.headline({
    link,
    tick: { ...TICK, ...tick },
    status: { ...STATUS, ...status },
    recent,
    written,
    heardAt: 0,
  });
}

test('s5_a_well_service_says_who_serves_what_share_and_that_all_is_well', () => {
  const { title, detail, mood } = headline();
  assert.equal(title, 'All is well.');
  assert.equal(mood, 'good');
  assert.match(detail, /memory 90\s%, Redis 5\s% and the database 5\s% in the last 10\ss/);
});

test('s5_reads_that_fail_come_before_everything_else_and_name_the_cause', () => {
  const recent = { ...SERVING, failed: 92, memory: 8, redis: 0, database: 0, answered: 8 };
  const checks = {
    ...STATUS.health.checks,
    reads: check('degraded', '92 % failed; the newest failure: `search`: no such table'),
  };
  for (const redis of ['ready', 'down']) {
    const told = headline({ recent, tick: { redis, status: 'degraded' }, status: { health: { checks } } });
    assert.match(told.title, /^92\s% of reads fail/);
    assert.equal(told.mood, 'bad');
    assert.match(told.detail, / The newest failure: `search`: no such table\.$/);
    assert.equal(told.trouble, 'reads');
    assert.equal(told.said, 'Reads fail.', 'no figure is spoken');
  }
});

test('s5_staleness_then_slowness_then_flapping_are_told_each_with_its_chapter', () => {
  const stale = headline({ recent: { ...SERVING, stale: 38 } });
  assert.deepEqual([stale.title.replace(/\s/g, ' '), stale.trouble], ['38 % of answers are stale.', 'stale']);
  const slow = headline({ tick: { p99_10s_ms: 900 } });
  assert.deepEqual([slow.title, slow.trouble], ['Answers are slow.', 'slow']);
  const flapping = { since_ms: 0, reconnects: 732, last_ms: 1, cause: 'reset' };
  const flaps = headline({ status: { redis: { ...STATUS.redis, flapping } } });
  assert.match(flaps.title, /flaps/);
  assert.match(flaps.detail, /732 times since .*reset/);
  assert.equal(flaps.mood, 'warn');
  const blip = { ...STATUS.redis, state: 'down', state_for_ms: 300, flapping };
  const away = headline({ status: { redis: blip }, tick: { redis: 'down' } });
  assert.match(away.title, /flaps/, 'the same state while it is away for a moment');
  const long = { ...blip, state_for_ms: 9000 };
  assert.match(headline({ status: { redis: long }, tick: { redis: 'down' } }).title, /without Redis/);
});

test('s5_writes_that_fail_are_never_all_is_well_and_are_told_until_one_works', () => {
  const tick = (at_ms, reads) => ({ at_ms, reads: { ...NONE, ...reads } });
  const ticks = [tick(1000, { writes: 3, writes_failed: 1 }), tick(2000, { writes_failed: 2 }), tick(3000, {})];
  const written = page.sum(page.sinceWritten(ticks));
  assert.deepEqual([written.writes, written.writes_failed], [0, 2]);
  const statements = [{ name: 'rename_user', last_minute: { failed: 2 }, since_start: { failed: 2 } }];
  const told = headline({ status: { statements }, written });
  assert.deepEqual(
    [told.title.replace(/\s/g, ' '), told.mood, told.said],
    ['100 % of writes fail.', 'bad', 'Writes fail.'],
  );
  assert.equal(told.trouble, 'writes', 'a chapter of its own');
  assert.match(told.detail, /2 of 2 writes .*rename_user\. The log of the service tells why\./);
  const checks = { ...STATUS.health.checks, statements: check('degraded', 'the last statement failed: disk full') };
  assert.match(headline({ status: { statements, health: { checks } }, written }).detail, /disk full/);
  // Nobody writes any more, and the service still knows that it could not.
  assert.match(headline({ status: { health: { checks } } }).title, /writes fail/);
  assert.match(headline({ written: page.sum(page.sinceWritten([...ticks, tick(4000, { writes: 1 })])) }).title, /well/);
});

test('s5_a_drill_that_touched_nothing_is_not_called_failed', () => {
  const kpis = [{ name: 'untouched', pass: false }];
  assert.deepEqual(page.judged({ verdict: 'void', kpis }).mood, 'warn');
  assert.doesNotMatch(page.judged({ verdict: 'void', kpis }).words, /outside|failed/i);
  assert.match(page.judged({ verdict: 'failed', kpis }).words, /touched nothing: outside the target/);
});

test('s5_a_second_between_two_answers_is_no_contradiction', () => {
  // The newest second says that Redis is back; the checks are still of the second before.
  const checks = { ...STATUS.health.checks, redis: check('unhealthy', 'down for 12 s') };
  const status = { health: { checks }, redis: { ...STATUS.redis, state: 'down' } };
  const told = headline({ status });
  assert.equal(told.mood, 'good');
  assert.doesNotMatch(told.detail, /down/);
});

test('s5_a_busy_machine_is_a_note_and_only_writes_are_not_no_calls', () => {
  const checks = { ...STATUS.health.checks, cpu: check('degraded', '86 % in use') };
  const busy = headline({ status: { health: { checks } } });
  assert.deepEqual([busy.title, busy.mood], ['All is well.', 'good']);
  assert.match(busy.detail, /One thing to watch\. CPU: 86 % in use/);
  assert.match(headline({ recent: { ...NONE, writes: 200 } }).title, /Only writes/);
});

const event = (at_ms, name, fields = {}) => ({
  at_ms,
  event: name,
  id: `1-${at_ms}`,
  source: 'connection',
  connection: 0,
  ...fields,
});

test('s5_flapping_is_one_entry_that_grows_and_leaves_the_others_their_place', () => {
  const events = [event(1, 'started', { source: 'service', version: '1' })];
  for (let n = 0; n < 100; n += 1) {
    events.push(event(10 + n * 10, 'lost', { cause: 'reset' }), event(15 + n * 10, 'connected', { attempt: 1 }));
    if (n > 10)
      events.push(event(16 + n * 10, 'flapping', { since_ms: 10, reconnects: n + 1, last_ms: 1, cause: 'reset' }));
  }
  events.push(event(2000, 'lost', { cause: 'reset' }));
  const rows = page.grouped(events).map((group) => group.last.event);
  assert.deepEqual(rows, ['lost', 'flapping', 'started']);
  assert.match(page.tellGroup(page.grouped(events)[1]).detail, /100 times/);
  const ended = [
    ...events.slice(0, -1),
    event(3000, 'flapping_ended', { since_ms: 10, reconnects: 100, last_ms: 1000, cause: 'reset' }),
  ];
  assert.deepEqual(
    page.grouped(ended).map((group) => group.last.event),
    ['flapping_ended', 'started'],
  );
  assert.equal(page.stories(ended).length, 2);
});

test('s5_a_query_is_named_once_beside_its_cause', () => {
  const told = (cause) => page.tell(event(1, 'reads_failing', { query: 'search', share: 0.5, cause })).detail;
  assert.match(told('no such table'), /the newest failure: `search`: no such table$/);
  const own = 'the query `search` was refused by the database';
  assert.equal(told(own).split('search').length, 2, told(own));
});

test('s5_an_outage_that_ends_without_a_new_connection_ends', () => {
  const events = [
    event(1, 'unresponsive', { quiet_ms: 500 }),
    event(2, 'down', { cause: 'silent' }),
    event(9000, 'recovered', { quiet_ms: 9000 }),
  ];
  const [newest] = page.stories(events);
  assert.deepEqual([newest.title, newest.mood], ['Redis is back', 'good']);
});

const OUTAGE = {
  of: 'redis',
  began_ms: 1_700_000_000_000,
  ended_ms: 1_700_000_012_400,
  ended_by: 'reconnected',
  cause: 'connection refused',
  detection_ms: null,
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
};

test('s5_an_incident_as_text_has_cause_since_detection_refused_unknown_and_recovery', () => {
  const [incident] = page.incidents({ outages: [OUTAGE] });
  const text = page.report(incident, { namespace: 'shop', version: '0.1.0', address: 'http://127.0.0.1:8080' });
  for (const line of [
    'Redis was away: shop at http://127.0.0.1:8080, Steadfast 0.1.0',
    'Since: 2023-11-14 22:13:20.000 UTC',
    'Until: 2023-11-14 22:13:32.400 UTC (12.4 s)',
    'Cause: Connection refused',
    'Noticed: at once',
    'Attempts that failed: 41',
    'Calls refused at once: 17',
    'Outcomes unknown: 2',
    'Reads failed: 3 of 480',
    'Reads stale, slow: 20, 1',
    'Writes failed: 0 of 4',
    'Recovery: by a new connection, after 12.4 s',
    'Runbook: Redis down, http://127.0.0.1:8080/docs/operations#redis-down',
  ]) {
    assert.ok(text.split('\n').includes(line), `${line}\nis not in\n${text}`);
  }
});

test('s5_every_outage_is_an_incident_and_a_band_beside_starts_reloads_and_drills', () => {
  const events = [
    event(1000, 'started', { source: 'service' }),
    event(6000, 'drill', { drill: {} }),
    event(7000, 'reloaded', {}),
    event(8000, 'drill_over', { drill: {} }),
  ];
  const outages = [
    { ...OUTAGE, of: 'reads', began_ms: 2000, ended_ms: 5000, ended_by: 'recovered' },
    { ...OUTAGE, of: 'database', began_ms: 5500, ended_ms: 5600, ended_by: 'recovered' },
    { ...OUTAGE, began_ms: 9000, ended_ms: null, ended_by: null, flapping: true, times: 12 },
  ];
  const found = page.incidents({ outages });
  assert.deepEqual(
    found.map(({ title, until, trouble }) => [title, until, trouble]),
    [
      ['Redis flaps', null, 'flapping'],
      ['The database was away', 5600, 'database'],
      ['Reads failed', 5000, 'reads'],
    ],
  );
  const [flaps] = found;
  assert.equal(flaps.mood, 'warn', 'it serves meanwhile');
  assert.deepEqual(flaps.facts.at(-1), ['Recovery', 'back each time, and not steady yet']);
  const away = page.incidents({ outages: [outages[2]], redis: { state: 'down', state_for_ms: 15_800 } })[0];
  assert.deepEqual([away.title, away.mood, away.trouble], ['Redis is away, and flapped before', 'bad', 'down']);
  assert.match(away.facts.at(-1)[1], /^not yet: away for 15\.8\ss now$/);
  const bands = page.bands(found, events, 0, 10_000);
  assert.deepEqual(bands.map(({ kind, from, to }) => [kind, from, to]).sort(), [
    ['database', 5500, 5600],
    ['drill', 6000, 8000],
    ['failing', 2000, 5000],
    ['outage', 9000, 10_000],
    ['reload', 7000, 7000],
    ['restart', 1000, 1000],
  ]);
  assert.equal(
    page.bandsInWords(bands),
    '1 outage of Redis, 1 outage of the database, 1 time of failing reads, 1 drill, 1 start, 1 reload',
  );
});

test('s5_headings_of_the_runbook_have_the_ids_that_links_name', () => {
  assert.equal(page.slug('Outbox lagging, or Redis suspended'), 'outbox-lagging-or-redis-suspended');
});

test('s5_what_those_beside_are_held_to_is_told_where_it_is_another', () => {
  const kpi = (target) => ({ name: 'users_well', unit: 'ms', bound: 'below', target });
  const plain = (words) => words.replace(/\s/g, ' ');
  const side = (target) => ({ kpis: [kpi(target)] });
  assert.equal(plain(page.targets(kpi(1000), [side(1000), side(30_000)])), 'under 1 s (those beside: under 30 s)');
  assert.equal(plain(page.targets(kpi(1000), [side(1000), side(1000)])), 'under 1 s');
});

test('s5_a_client_that_fails_at_once_is_not_praised_for_its_speed', () => {
  const kpi = (name, fields) => ({
    name,
    phase: 'fault',
    value: 1,
    unit: 'ms',
    bound: 'at_most',
    target: 500,
    pass: true,
    ...fields,
  });
  const errors = kpi('errors', { unit: 'ratio', value: 0.25, pass: false });
  const phases = (failed) => [
    { name: 'baseline', calls: 300, skipped: 0, errors: {} },
    { name: 'fault', calls: 100, skipped: 0, errors: { refused: failed } },
  ];
  const p99 = kpi('fault_p99');
  assert.deepEqual(page.cell({ kpis: [errors], phases: phases(100) }, p99), { mood: 'bad', words: 'failed at once' });
  assert.equal(page.cell({ kpis: [errors], phases: phases(25) }, p99).mood, 'idle', 'neither a tick nor a cross');
  assert.equal(page.cell({ kpis: [{ ...errors, pass: true }], phases: phases(0) }, p99).mood, 'good');
  assert.equal(page.phase('baseline, recovered'), 'before the fault and once recovered');
});

test('t20_a_failover_is_told_with_what_it_cost_and_what_to_do', () => {
  const event = (history) => ({
    event: 'failed_over',
    at_ms: 0,
    id: 'a-1',
    from: '10.0.0.1:6379',
    to: '10.0.0.2:6379',
    epoch: 4,
    votes: 2,
    voters: 3,
    history,
  });
  const told = (history) => page.tell(event(history));
  const nothing = told({ is: 'same', certain_ms_ago: 12, at_risk: 0 });
  assert.equal(nothing.mood, 'good');
  assert.match(
    nothing.detail,
    /10\.0\.0\.2:6379 is the primary in place of 10\.0\.0\.1:6379 \(epoch 4, named by 2 of 3/,
  );
  assert.match(nothing.detail, /no write that was acknowledged here is lost/);
  const some = told({ is: 'same', certain_ms_ago: 800, at_risk: 12 });
  assert.equal(some.title, 'Redis failed over, 12 acknowledged writes at risk');
  assert.match(some.detail, /until 800\sms before is safe; the 12 acknowledged writes after that may be lost/);
  assert.equal(some.trouble, 'failover');
  assert.match(told({ is: 'same', certain_ms_ago: null, at_risk: 1 }).detail, /1 acknowledged write may be lost/);
  assert.equal(told({ is: 'forked' }).mood, 'bad');
  assert.match(told({ is: 'unknown' }).detail, /ROLE or INFO is not allowed/);
});

test('s5_each_kind_of_event_has_words_of_its_own', async () => {
  const root = fileURLToPath(new URL('../..', import.meta.url));
  const source = async (folder, words) => {
    for (const entry of await readdir(join(root, folder), { recursive: true, withFileTypes: true })) {
      if (!entry.isFile() || !entry.name.endsWith('.rs')) continue;
      const text = await readFile(join(entry.parentPath, entry.name), 'utf8');
      if (text.includes(words)) return text;
    }
    throw new Error(`nobody says ${words}`);
  };
  const client = await source('crates/client/src', 'named! {\n    impl EventKind {');
  const [, kinds] = client.split('named! {\n    impl EventKind {');
  const names = [...kinds.slice(0, kinds.indexOf('\n}')).matchAll(/=> "(\w+)"/g)].map(([, name]) => name);
  assert.ok(names.includes('failed_over') && names.length > 15, names.join());
  const told = await readFile(join(root, 'web/src/events.ts'), 'utf8');
  const service = ['certificate_renewed', 'certificate_refused', 'reload_late', 'reads_failing', 'missed'];
  for (const name of [...names, ...service]) assert.ok(told.includes(`case '${name}':`), `nothing is said of ${name}`);
});

test('t17_what_is_said_of_the_nodes_begins_with_the_primary_and_names_what_is_missing', () => {
  const watched = {
    service: 'main',
    primary: 'a:1',
    epoch: 2,
    switches: 0,
    votes: 3,
    majority: 2,
    voters: 3,
    confirmed_ms_ago: 4000,
    proof_within_ms: null,
    each: [],
    replicas_known: true,
    not_allowed: [],
  };
  const replica = { address: 'b:1', role: 'replica', state: 'in_sync', can_take_over: true };
  const said = (servers, fields = {}) => page.said({ servers, sentinels: { ...watched, ...fields } });
  assert.deepEqual(said([replica]), [
    'The primary of “main” is a:1, epoch 2, confirmed by a majority (2 of 3) 4\u00a0s ago.',
  ]);
  for (const missing of [{ state: 'away' }, { can_take_over: false }]) {
    assert.match(said([{ ...replica, ...missing }])[1], /No replica could take over now/);
  }
  const unknown = said([{ ...replica, state: 'unknown' }], { replicas_known: false });
  assert.match(unknown[1], /Whether a replica could take over is not known/);
  assert.match(said([replica], { primary: null })[0], /No sentinel names a primary/);
  assert.match(said([replica], { confirmed_ms_ago: null, proof_within_ms: 500 })[1], /Writes to Redis are refused/);
});

test('s4_other_keys_are_served_only_if_some_shard_serves_and_a_node_tells_so_and_the_cache_is_named', () => {
  const shards = {
    primaries: 3,
    away: ['b:1 (slots 5461-10922): refused'],
    alone: [],
    cache_slot: 7,
    cache_away: false,
    uncovered: '',
    uncovered_slots: 0,
    epoch: 4,
    heard_ms_ago: 400,
    error: null,
    discoveries: 1,
    redirects: 0,
    from_replicas: null,
  };
  const said = (fields = {}) => page.saidOfShards({ ...shards, ...fields }).join(' ');
  assert.match(said(), /All other keys are served\. The cache \(slot 7\) is not concerned\. Who .* epoch 4\.$/);
  assert.match(said({ cache_away: true }), /The cache’s shard \(slot 7\) is away\./);
  const down = said({ error: 'a:1: CLUSTERDOWN', heard_ms_ago: 90_000, cache_away: null });
  assert.doesNotMatch(down, /other keys|cache/);
  assert.match(down, /No node tells .*: a:1: CLUSTERDOWN\. .*last heard 90\u00a0s ago\.$/);
  const none = said({ primaries: 1, cache_away: true });
  assert.match(none, /Redis serves no key\./);
  assert.doesNotMatch(none, /other keys/);
  assert.match(said({ away: [], heard_ms_ago: 61_000 }), /^Who .* epoch 4, last heard 61\u00a0s ago\.$/);
  const reading = { max_lag_ms: 500, served: 0, by_primaries: 0, replicas: 3, fit: 0, lag_ms: null };
  const read = (fields) => said({ away: [], from_replicas: { ...reading, ...fields } });
  assert.match(read({}), /^Reads may be served by replicas, with data up to 500\u00a0ms old; there was none yet\. Who/);
  assert.match(
    read({ served: 12, by_primaries: 1, fit: 2 }),
    /^2 of 3 replicas can serve reads .*: replicas served 12, primaries 1 instead\./,
  );
  assert.match(read({ by_primaries: 1 }), /^No replica can serve reads/);
});
