// The servers behind the name of Redis and the sentinels that watch them, one by one: who serves, who could take over, who says otherwise.
import { at, type Child, h, redraw } from './dom';
import { ago, bytes, count, duration, text } from './format';
import { pill, whatToDo } from './marks';
import { breakerName, type Mood, plural, redisName } from './words';
import type { FromReplicas, Health, RedisNode, Sentinel, SentinelGroup, Shards, Status } from './wire';

/** Of one server that nobody watches nothing is shown that is not said above. */
export function drawNodes({ nodes, health }: Status): void {
  const { servers, sentinels, shards } = nodes;
  at('nodes').hidden = servers.length < 2 && !sentinels && !shards;
  redraw(at('nodes-rows'), JSON.stringify(servers), () => servers.map(row));
  at('nodes-watch').hidden = !sentinels;
  at('nodes-said').hidden = !sentinels && !shards;
  if (shards) {
    drawShards(shards, health.checks.shards?.status ?? 'healthy');
    return;
  }
  if (!sentinels) {
    redraw(at('nodes-state'), '', () => []);
    return;
  }
  const check = health.checks.sentinels?.status ?? 'healthy';
  const words = `${sentinels.votes} of ${plural(sentinels.voters, 'sentinel')} agree`;
  redraw(at('nodes-state'), `${check}${words}`, () => [pill(moodOfWatch(sentinels, check), words)]);
  const told = said(nodes);
  const advice = check !== 'healthy' || told.length > 1;
  redraw(at('nodes-said'), `${told.join('|')}${advice}`, () => [
    ...told.map((line) => h('p', {}, line)),
    advice ? h('p', {}, whatToDo('failover')) : null,
  ]);
  redraw(at('sentinels-rows'), JSON.stringify(sentinels.each.map(shownOf)), () => sentinels.each.map(sentinelRow));
}

/** Of a cluster: how many of its shards serve, and what does not. */
function drawShards(shards: Shards, check: Health): void {
  const serving = shards.primaries - shards.away.length;
  const words = `${serving} of ${plural(shards.primaries, 'shard')} serve`;
  const mood = check !== 'healthy' ? 'bad' : shards.alone.length > 0 ? 'warn' : 'good';
  redraw(at('nodes-state'), `${mood}${words}`, () => [pill(mood, words)]);
  const told = saidOfShards(shards);
  redraw(at('nodes-said'), `${told.join('|')}${check}`, () => [
    ...told.map((line) => h('p', {}, line)),
    check === 'healthy' ? null : h('p', {}, whatToDo('shard')),
  ]);
}

/** The age of what is known of a cluster that is trouble. */
const VIEW_OLD_MS = 60_000;

/** What an engineer has to know of a cluster, most important first. */
export function saidOfShards(shards: Shards): string[] {
  const { primaries, away, alone, uncovered, heard_ms_ago: heard, error, epoch, from_replicas: from } = shards;
  if (heard === null) return [`No node has told who owns which slot${error ? `: ${error}` : ' yet'}.`];
  const lines = away.map((why) => `${why}.`);
  if (uncovered !== '') lines.push(`Nobody owns the slots ${uncovered}.`);
  if (lines.length > 0) {
    const served = primaries > away.length;
    if (!served) lines.push('Redis serves no key.');
    else if (error === null) lines.push('All other keys are served.');
    lines.push(...saidOfCache(shards));
  }
  if (error !== null) lines.push(`No node tells who owns which slot, so perhaps none serves: ${error}.`);
  if (from !== null) lines.push(saidOfReplicas(from));
  if (alone.length > 0) lines.push(`Without a replica, so nobody takes over: ${alone.join(', ')}.`);
  const old = error !== null || heard > VIEW_OLD_MS ? `, last heard ${ago(heard)}` : '';
  lines.push(`Who owns which slot is known by epoch ${epoch}${old}.`);
  return lines;
}

function saidOfReplicas({ max_lag_ms: most, served, by_primaries: instead, replicas, fit }: FromReplicas): string {
  const limit = `data up to ${text(duration(most))} old`;
  if (served + instead === 0) return `Reads may be served by replicas, with ${limit}; there was none yet.`;
  const can = fit === 0 ? 'No replica can' : `${fit} of ${plural(replicas, 'replica')} can`;
  return `${can} serve reads with ${limit}: replicas served ${count(served)}, primaries ${count(instead)} instead.`;
}

function saidOfCache({ cache_slot: slot, cache_away: away }: Shards): string[] {
  if (slot === null || away === null) return [];
  return [away ? `The cache’s shard (slot ${slot}) is away.` : `The cache (slot ${slot}) is not concerned.`];
}

function moodOfWatch({ votes, voters, each }: SentinelGroup, check: Health): Mood {
  if (check !== 'healthy') return 'bad';
  return votes === voters && each.every(({ state }) => state === 'agrees') ? 'good' : 'warn';
}

/** What an engineer has to know of them, most important first. */
export function said({ servers, sentinels }: Status['nodes']): string[] {
  if (!sentinels) return [];
  const { service, primary, epoch, majority, voters, confirmed_ms_ago: confirmed, switches } = sentinels;
  const proof =
    confirmed === null
      ? 'no majority has confirmed it yet'
      : `confirmed by a majority (${majority} of ${voters}) ${ago(confirmed)}`;
  const moved =
    switches === 0 ? '' : ` It has moved ${switches === 1 ? 'once' : `${count(switches)} times`} since the start.`;
  const lines = [
    primary === null
      ? `No sentinel names a primary for “${service}”.`
      : `The primary of “${service}” is ${primary}, epoch ${epoch ?? 'unknown'}, ${proof}.${moved}`,
  ];
  const { proof_within_ms: within } = sentinels;
  if (within !== null && (confirmed === null || confirmed > within)) {
    lines.push(
      `Writes to Redis are refused until a majority confirms it: no proof is to be older than ${text(duration(within))}.`,
    );
  }
  const fit = servers.filter(
    ({ role, state, can_take_over: can }) => role === 'replica' && state === 'in_sync' && can !== false,
  );
  if (!sentinels.replicas_known)
    lines.push('Whether a replica could take over is not known: neither the primary nor a sentinel has told of late.');
  else if (fit.length === 0)
    lines.push('No replica could take over now: should the primary fail, Redis stays away until it is back.');
  for (const { address, state, names, epoch: other, error } of sentinels.each) {
    if (state === 'disagrees')
      lines.push(`${address} names ${names ?? 'nobody'} instead, epoch ${other ?? 'unknown'}.`);
    if (state === 'silent') lines.push(`${address} does not answer${error ? `: ${error}` : ''}.`);
  }
  if (sentinels.not_allowed.length > 0) {
    lines.push(
      `${sentinels.not_allowed.join(' and ')} not allowed to this user: how far replicas are behind, and what a failover costs, is not known.`,
    );
  }
  return lines;
}

function row(node: RedisNode): HTMLElement {
  const { address, role, state, breaker, can_take_over: can, slots, follows } = node;
  return h(
    'tr',
    {},
    h('th', { scope: 'row' }, h('code', {}, address)),
    h('td', {}, roleName(role, can, slots, follows)),
    h('td', {}, pill(moodOf(state), stateName(state))),
    h('td', {}, behind(node)),
    h('td', {}, breaker === null ? '–' : breakerName(breaker)),
  );
}

function behind({ role, lag_bytes: lag, lag_ms: age }: RedisNode): string {
  if (role === 'primary') return '–';
  if (age !== null) return `at most ${text(duration(age))}`;
  return lag === null ? 'not known' : lag === 0 ? 'nothing' : text(bytes(lag));
}

function roleName(role: string, can: boolean | null, slots: string | null, follows: string | null): string {
  if (role === 'replica' && can === false) return 'replica, never promoted';
  // Of a cluster, where there are several of each.
  if (slots === null) return role;
  if (role === 'replica') return follows === null ? role : `replica of ${follows}`;
  return slots === '' ? 'primary, no slots' : `primary, slots ${slots}`;
}

const WORDS: Record<Sentinel['state'], [Mood, string]> = {
  agrees: ['good', 'Agrees'],
  disagrees: ['bad', 'Disagrees'],
  silent: ['warn', 'Silent'],
};

function sentinelRow(sentinel: Sentinel): HTMLElement {
  const { address, state, names, epoch } = sentinel;
  const [mood, words] = WORDS[state];
  const code = (words: string | null): Child => (words === null ? '–' : h('code', {}, words));
  return h(
    'tr',
    {},
    h('th', { scope: 'row' }, h('code', {}, address)),
    h('td', {}, pill(mood, words)),
    h('td', {}, code(names)),
    h('td', {}, epoch === null ? '–' : String(epoch)),
    h('td', {}, answered(sentinel)),
  );
}

function answered({ answered_ms_ago: last }: Sentinel): string {
  return last === null ? 'never' : ago(last);
}

/** What is drawn of a sentinel: ages only as precisely as they are told. */
function shownOf(sentinel: Sentinel): unknown[] {
  return [sentinel.address, sentinel.state, sentinel.names, sentinel.epoch, answered(sentinel)];
}

export function moodOf(state: string): Mood {
  if (state === 'ready' || state === 'in_sync') return 'good';
  if (state === 'idle') return 'good';
  return ['connecting', 'partial', 'unknown'].includes(state) ? 'warn' : 'bad';
}

function stateName(state: string): string {
  return { in_sync: 'In sync', away: 'Away', unknown: 'Not known', idle: 'Not asked yet' }[state] ?? redisName(state);
}
