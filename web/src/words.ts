// What is so, as one would tell a colleague who was woken for it. Pure: figures in, sentences out.
import { clock, count, duration, share, text } from './format';
import type { Trouble } from './runbook';
import { troubleOfCheck } from './runbook';
import type { Sum } from './store';
import type { Link } from './stream';
import type { Check, Status, Tick } from './wire';

export type Mood = 'good' | 'warn' | 'bad' | 'idle';

export interface Headline {
  mood: Mood;
  title: string;
  detail: string;
  /** The state without figures, for those who listen: it is spoken when it changes, and figures change every second. */
  said: string;
  /** What the runbook speaks of it under. */
  trouble?: Trouble;
}

interface Known {
  link: Link;
  tick: Tick | undefined;
  status: Status | null;
  recent: Sum;
  /** The seconds that writes are judged by. */
  written: Sum;
  heardAt: number;
}

/** Shares and times from which on the headline speaks of what callers feel. */
const FELT = { failed: 0.01, stale: 0.05, slowMs: 250, least: 5 };

/** Is it serving, from where, and if something is wrong, what. What callers feel comes first, and of that the worst. */
export function headline(known: Known): Headline {
  const { link, tick, status, recent, written } = known;
  if (link.state === 'refused') {
    return plainly('idle', 'This page needs a token.', `The service says: ${link.cause}.`);
  }
  if (link.state === 'lost') return lost(known, link);
  if (!tick) return plainly('idle', 'Asking the service…', 'The first figures come within a second.');
  if (tick.phase === 'draining') {
    const detail = 'It finishes what it has begun and takes nothing new. Callers are being sent elsewhere.';
    return plainly('warn', 'About to stop.', detail);
  }
  if (tick.phase === 'starting') return plainly('idle', 'Starting.', 'It is not listening yet.');
  const checks = checksOf(status, tick);
  if (tick.status === 'unhealthy') {
    const broken = Object.entries(checks).filter(([, check]) => check.status === 'unhealthy');
    const detail = broken.map(([name, check]) => `${checkName(name)}: ${check.message}.`).join(' ');
    return plainly('bad', 'Not serving.', detail || 'Neither Redis nor the database answers.', 'reads');
  }
  return (
    failing(checks, recent) ??
    writesFail(status, checks, written) ??
    flapping(status, tick, recent) ??
    withoutParts(status, tick, recent) ??
    stale(recent) ??
    slow(tick, recent) ??
    unsteady(status, tick, checks) ??
    calm(tick, status, checks, recent)
  );
}

function plainly(mood: Mood, title: string, detail: string, trouble?: Trouble): Headline {
  return { mood, title, detail, said: title, ...(trouble && { trouble }) };
}

/** The checks, unless they are of a moment before the newest second: then what they say of Redis is no longer so. */
function checksOf(status: Status | null, tick: Tick): Record<string, Check> {
  if (!status) return {};
  const { redis, ...others } = status.health.checks;
  const fresh = (status.redis.state === 'ready') === (tick.redis === 'ready');
  return fresh && redis ? { ...others, redis } : others;
}

function lost(known: Known, link: Link & { state: 'lost' }): Headline {
  const until = Math.max(0, Math.ceil((link.retryAt - Date.now()) / 1000));
  const heard = known.heardAt ? `Last heard at ${clock(known.heardAt)}. What you see is from then. ` : '';
  const next = until > 0 ? `Next attempt in ${until} s.` : 'Trying now.';
  return plainly('bad', 'No contact with the service.', `${heard}${next}`);
}

/** The share of calls asked, not of calls answered. */
function failing(checks: Record<string, Check>, recent: Sum): Headline | null {
  const part = recent.calls ? recent.failed / recent.calls : 0;
  if (recent.failed < FELT.least || part < FELT.failed) return null;
  const why = checks.reads && checks.reads.status !== 'healthy' ? checks.reads.message : '';
  // How many is said by the figures here, which are newer.
  const cause = why ? ` ${capital(why.slice(why.indexOf('; ') + 1).trim())}.` : '';
  return {
    mood: part < 0.05 ? 'warn' : 'bad',
    title: `${text(share(part))} of reads fail.`,
    detail: `${count(recent.failed)} of ${plural(recent.calls, 'read')} in the last ${span(recent)}.${cause}`,
    said: 'Reads fail.',
    trouble: 'reads',
  };
}

/** A statement may fail by itself, with a database that is well and queries that are answered. */
function writesFail(status: Status | null, checks: Record<string, Check>, written: Sum): Headline | null {
  const calls = written.writes + written.writes_failed;
  const part = calls ? written.writes_failed / calls : 0;
  const few = written.writes > 0 && written.writes_failed < FELT.least;
  if (part < FELT.failed || few || checks.database?.status === 'unhealthy') return null;
  const failed = (status?.statements ?? []).filter(({ last_minute }) => last_minute.failed > 0);
  const names = failed.length > 0 ? `: ${listed(failed.map(({ name }) => name))}` : '';
  const check = checks.statements;
  const why = check && check.status !== 'healthy' ? check.message : 'the log of the service tells why';
  return {
    mood: part < 0.05 ? 'warn' : 'bad',
    title: `${text(share(part))} of writes fail.`,
    detail: `${count(written.writes_failed)} of ${plural(calls, 'write')} in the last ${span(written)}${names}. ${capital(why)}.`,
    said: 'Writes fail.',
    trouble: 'writes',
  };
}

/** A shard that is away takes the cache with it, or does not concern it: all of the cache lies on one. */
function partly(status: Status): Headline {
  const { shards } = status.nodes;
  const detail = `${capital(status.health.checks.shards?.message ?? 'some shards do not serve')}.`;
  if (shards?.cache_away) return plainly('warn', 'Serving without the shard of the cache.', detail, 'shard');
  return plainly('warn', 'Serving; a part of the Redis cluster is away.', detail, 'shard');
}

/** Redis or the database is away. */
function withoutParts(status: Status | null, tick: Tick, recent: Sum): Headline | null {
  if (tick.redis === 'partial' && status?.redis.state === 'partial') {
    const databaseAway = status.health.checks.database?.status === 'unhealthy';
    if (!databaseAway) return partly(status);
  } else if (tick.redis !== 'ready') {
    const redis = status?.redis;
    const known = redis && redis.state !== 'ready';
    const away = known ? ` for ${text(duration(redis.state_for_ms))}` : '';
    const cause = known && redis.last_error ? `: ${redis.last_error}` : '';
    const state = tick.redis === 'connecting' ? 'is being connected to' : 'has been away';
    const old = recent.stale > 0 ? `, ${text(share(recent.stale / recent.answered))} of them stale` : '';
    const where = recent.answered > 0 ? ` Answers come${from(recent)}${old}.` : '';
    const detail = `Redis ${state}${away}${cause}.${where}`;
    return plainly('warn', 'Serving without Redis.', detail, 'down');
  }
  const database = status?.health.checks.database;
  if (database?.status !== 'unhealthy') return null;
  const detail = `What memory and Redis hold is answered; the rest, and every change, fails. ${capital(database.message)}.`;
  return plainly('bad', 'Serving without the database.', detail, 'database');
}

/** A connection that is lost and back again and again is away at some moments: that is no other state. */
export const BLIP_MS = 5_000;

function flapping(status: Status | null, tick: Tick, recent: Sum): Headline | null {
  const state = status?.redis.flapping;
  if (!state) return null;
  if (tick.redis !== 'ready' && status.redis.state !== 'ready' && status.redis.state_for_ms > BLIP_MS) return null;
  const often = `Lost and replaced ${plural(state.reconnects, 'time')} since ${clock(state.since_ms)}`;
  const old =
    recent.stale > 0 ? ` ${count(recent.stale)} of the last ${plural(recent.answered, 'answer')} were stale.` : '';
  return plainly('warn', 'Serving; Redis flaps.', `${often}. The newest cause: ${state.cause}.${old}`, 'flapping');
}

function stale(recent: Sum): Headline | null {
  const part = recent.answered ? recent.stale / recent.answered : 0;
  if (recent.stale < FELT.least || part < FELT.stale) return null;
  return {
    mood: 'warn',
    title: `${text(share(part))} of answers are stale.`,
    detail: `${count(recent.stale)} of ${plural(recent.answered, 'answer')} in the last ${span(recent)}: fresher ones could not be had in time. They say so themselves.`,
    said: 'Answers are stale.',
    trouble: 'stale',
  };
}

function slow(tick: Tick, recent: Sum): Headline | null {
  const p99 = tick.p99_10s_ms ?? 0;
  if (recent.calls < 20 || p99 < FELT.slowMs) return null;
  return {
    mood: 'warn',
    title: 'Answers are slow.',
    detail: `One in a hundred of the last 10 s took ${text(duration(p99))} or more; ${text(duration(FELT.slowMs))} is the limit.`,
    said: 'Answers are slow.',
    trouble: 'slow',
  };
}

/** What callers do not feel yet, but whoever runs the service should know. */
function unsteady(status: Status | null, tick: Tick, checks: Record<string, Check>): Headline | null {
  const suspended = status?.cache.redis?.suspended;
  if (suspended) {
    const detail = `${capital(suspended)}. Until it is known to be current, answers come from the database.`;
    return plainly('warn', 'Serving; Redis is not in use yet.', detail, 'outbox');
  }
  if (tick.breaker !== 'closed') {
    const detail = `Redis is reachable, but the breaker is ${breakerName(tick.breaker)} after failures: few calls or none are let through to it.`;
    return plainly('warn', 'Serving; the breaker holds Redis back.', detail, 'breaker');
  }
  for (const [name, words] of [
    ['statements', 'Serving; writes fail.'],
    ['outbox', 'Serving; invalidations wait.'],
    ['sentinels', 'Serving; no majority of sentinels.'],
    ['shards', 'Serving; the Redis cluster is not well.'],
  ] as const) {
    const check = checks[name];
    if (check && check.status !== 'healthy') {
      return plainly('warn', words, `${capital(check.message)}.`, troubleOfCheck(name) ?? undefined);
    }
  }
  return null;
}

function calm(tick: Tick, status: Status | null, checks: Record<string, Check>, recent: Sum): Headline {
  const notice = status?.service.notice ? ` ${status.service.notice}` : '';
  const watch = Object.entries(checks).filter(([name, check]) => name !== 'reads' && check.status !== 'healthy');
  const watched = watch.map(([name, check]) => ` ${checkName(name)}: ${check.message}.`).join('');
  const redis = tick.rtt_ms === null ? 'Redis answers' : `Redis answers in ${text(duration(tick.rtt_ms))}`;
  const database = status?.health.checks.database?.latency_ms;
  const both = typeof database === 'number' ? `${redis}, the database in ${text(duration(database))}.` : `${redis}.`;
  const note = watch.length > 0 ? ` One thing to watch.${watched}` : notice;
  if (recent.calls > 0) {
    return { mood: 'good', title: 'All is well.', detail: `${shares(recent)} ${both}${note}`, said: 'All is well.' };
  }
  const earlier = callsSinceStart(status);
  const idle = earlier === null ? 'Ready.' : earlier > 0 ? 'Ready. No calls just now.' : 'Ready. No calls yet.';
  const title = recent.writes > 0 ? 'Ready. Only writes just now.' : idle;
  const writes = recent.writes > 0 ? ` ${plural(recent.writes, 'write')} in the last ${span(recent)}.` : '';
  const next = earlier
    ? ` ${plural(earlier, 'call')} since the start; the next will show here within a second.`
    : ' The first call will show here within a second.';
  return { mood: 'good', title, detail: `${both}${writes || next}${note}`, said: 'Ready.' };
}

/** Who serves what share of the answers. */
function shares(recent: Sum): string {
  const parts: [string, number][] = [
    ['memory', recent.memory],
    ['Redis', recent.redis],
    ['the database', recent.database],
  ];
  const told = parts
    .filter(([, reads]) => reads > 0)
    .map(([name, reads]) => `${name} ${text(share(reads / recent.calls))}`);
  return `Answered by ${listed(told)} in the last ${span(recent)}.`;
}

function listed(words: string[]): string {
  return words.length < 2 ? (words[0] ?? '') : `${words.slice(0, -1).join(', ')} and ${words.at(-1)}`;
}

function span(recent: Sum): string {
  return text(duration(recent.seconds * 1000));
}

/** `null` while it is not known: calls older than what is counted by the second are not calls that never were. */
function callsSinceStart(status: Status | null): number | null {
  if (!status) return null;
  const { memory, redis, database, failed } = status.reads;
  return memory + redis + database + failed;
}

/** " from memory and Redis": whatever gives at least one answer in a hundred. */
function from(recent: Sum): string {
  const names: [number, string][] = [
    [recent.memory, 'memory'],
    [recent.redis, 'Redis'],
    [recent.database, 'the database'],
  ];
  const used = names.filter(([reads]) => reads > 0 && reads >= recent.answered / 100).map(([, name]) => name);
  return used.length === 0 ? '' : ` from ${listed(used)}`;
}

export function checkName(name: string): string {
  return name === 'cpu' ? 'CPU' : capital(name);
}

export function breakerName(state: string): string {
  return state === 'half_open' ? 'half-open' : state;
}

export function redisName(state: string): string {
  const names = { ready: 'In service', partial: 'In part', connecting: 'Connecting', down: 'Down', closed: 'Closed' };
  return names[state as keyof typeof names] ?? capital(state);
}

export function capital(words: string): string {
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export function plural(number: number, noun: string): string {
  return `${count(number)} ${noun}${number === 1 ? '' : 's'}`;
}

/** A chart in words, for those who cannot see it. */
export function chartSummary(total: Sum, over: string): string {
  if (total.calls === 0) return `No calls in ${over}.`;
  const part = (reads: number) => text(share(reads / total.calls));
  return `${plural(total.calls, 'call')} in ${over}: memory ${part(total.memory)}, Redis ${part(total.redis)}, database ${part(total.database)}, ${count(total.failed)} failed.`;
}
