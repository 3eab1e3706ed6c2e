// What is so and what happened, as one would tell a colleague who was woken for it. Pure: figures in, sentences out.
import type { Icon } from './dom';
import { ago, clock, count, duration, share, text } from './format';
import type { Noted, Sum } from './store';
import type { Link } from './stream';
import type { Status, Tick } from './wire';

export type Mood = 'good' | 'warn' | 'bad' | 'idle';

export interface Headline {
  mood: Mood;
  title: string;
  detail: string;
}

interface Known {
  link: Link;
  tick: Tick | undefined;
  status: Status | null;
  recent: Sum;
  heardAt: number;
  now: number;
}

/** Is it serving, from where, and if something is wrong, what. The worst comes first. */
export function headline(known: Known): Headline {
  const { link, tick, status, recent } = known;
  if (link.state === 'refused') {
    return { mood: 'idle', title: 'This page needs a token.', detail: `The service says: ${link.cause}.` };
  }
  if (link.state === 'lost') return lost(known, link);
  if (!tick) return { mood: 'idle', title: 'Asking the service…', detail: 'The first figures come within a second.' };
  if (tick.phase === 'draining') {
    return {
      mood: 'warn',
      title: 'About to stop.',
      detail: 'It finishes what it has begun and takes nothing new. Callers are being sent elsewhere.',
    };
  }
  if (tick.phase === 'starting') return { mood: 'idle', title: 'Starting.', detail: 'It is not listening yet.' };
  const checks = status?.health.checks ?? {};
  if (tick.status === 'unhealthy') {
    const broken = Object.entries(checks).filter(([, check]) => check.status === 'unhealthy');
    const detail = broken.map(([name, check]) => `${capital(name)}: ${check.message}.`).join(' ');
    return { mood: 'bad', title: 'Not serving.', detail: detail || 'Neither Redis nor the database answers.' };
  }
  const failing = failed(status, recent);
  if (failing) return failing;
  if (tick.redis !== 'ready') return withoutRedis(status, recent, tick);
  const database = checks.database;
  if (database?.status === 'unhealthy') {
    return {
      mood: 'bad',
      title: 'Serving without the database.',
      detail: `What memory and Redis hold is answered; the rest, and every change, fails. ${capital(database.message)}.`,
    };
  }
  if (status?.cache.redis?.suspended) {
    return {
      mood: 'warn',
      title: 'Serving; Redis is not in use yet.',
      detail: `${capital(status.cache.redis.suspended)}. Until it is known to be current, answers come from the database.`,
    };
  }
  if (tick.breaker !== 'closed') {
    return {
      mood: 'warn',
      title: `Serving${from(recent)}.`,
      detail: `Redis is reachable, but the breaker is ${breakerName(tick.breaker)} after failures: few calls or none are let through to it.`,
    };
  }
  return calm(tick, status, recent);
}

function lost(known: Known, link: Link & { state: 'lost' }): Headline {
  const until = Math.max(0, Math.ceil((link.retryAt - Date.now()) / 1000));
  const heard = known.heardAt ? `Last heard at ${clock(known.heardAt)}. What you see is from then. ` : '';
  const next = until > 0 ? `Next attempt in ${until} s.` : 'Trying now.';
  return { mood: 'bad', title: 'No contact with the service.', detail: `${heard}${next}` };
}

/** What callers feel comes before what is wrong with a part: the share of calls asked, not of calls answered. */
function failed(status: Status | null, recent: Sum): Headline | null {
  if (recent.calls === 0 || recent.failed < 5 || recent.failed / recent.calls < 0.01) return null;
  const why = status?.health.checks.reads;
  const cause = why && why.status !== 'healthy' && why.message ? ` ${capital(why.message)}.` : '';
  return {
    mood: recent.failed / recent.calls < 0.05 ? 'warn' : 'bad',
    title: `${text(share(recent.failed / recent.calls))} of reads fail.`,
    detail: `${count(recent.failed)} of ${plural(recent.calls, 'read')} in the last ${text(duration(recent.seconds * 1000))}.${cause}`,
  };
}

function withoutRedis(status: Status | null, recent: Sum, tick: Tick): Headline {
  const redis = status?.redis;
  const away = redis && redis.state !== 'ready' ? ` for ${text(duration(redis.state_for_ms))}` : '';
  const cause = redis?.last_error ? `: ${redis.last_error}` : '';
  const state = tick.redis === 'connecting' ? 'is being connected to' : 'has been away';
  const where = recent.answered > 0 ? ` Answers come${from(recent)}.` : '';
  return {
    mood: 'warn',
    title: 'Serving without Redis.',
    detail: `Redis ${state}${away}${cause}.${where} It is tried again several times a second.`,
  };
}

function calm(tick: Tick, status: Status | null, recent: Sum): Headline {
  const machine = Object.entries(status?.health.checks ?? {}).filter(
    ([name, check]) => name !== 'reads' && check.status !== 'healthy',
  );
  const notice = status?.service.notice;
  const earlier = callsSinceStart(status);
  const writing =
    recent.writes > 0
      ? `Ready. No reads just now, ${plural(recent.writes, 'write')} in the last ${text(duration(recent.seconds * 1000))}.`
      : null;
  const idle =
    writing ?? (earlier === null ? 'Ready.' : earlier > 0 ? 'Ready. No calls just now.' : 'Ready. No calls yet.');
  const title = recent.calls === 0 ? idle : `Serving${from(recent)}.`;
  if (machine.length > 0) {
    const detail = machine
      .map(([name, check]) => `${name === 'cpu' ? 'The processors: ' : `${capital(name)}: `}${check.message}.`)
      .join(' ');
    return { mood: 'good', title, detail: `Redis and the database answer. One thing to watch. ${detail}` };
  }
  const redis = tick.rtt_ms === null ? 'Redis answers' : `Redis answers in ${text(duration(tick.rtt_ms))}`;
  const database = status?.health.checks.database?.latency_ms;
  const both = typeof database === 'number' ? `${redis}, the database in ${text(duration(database))}` : redis;
  if (recent.calls === 0) {
    const next = earlier ? `${plural(earlier, 'call')} since the start; the next` : 'The first call';
    return { mood: 'good', title, detail: notice ?? `${both}. ${next} will show here within a second.` };
  }
  return { mood: 'good', title, detail: notice ?? `All is as it should be. ${both}.` };
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
  if (used.length === 0) return '';
  return ` from ${used.length < 3 ? used.join(' and ') : `${used[0]}, ${used[1]} and ${used[2]}`}`;
}

export interface Told {
  mood: Mood;
  icon: Icon;
  title: string;
  detail: string;
}

/** An event in plain words. */
export function tell(event: Noted): Told {
  const word = (name: string) => String(event[name] ?? '');
  const number = (name: string) => (typeof event[name] === 'number' ? (event[name] as number) : null);
  const cause = capital(word('cause'));
  switch (event.event) {
    case 'connected': {
      const outage = number('outage_ms');
      const after = outage === null ? '' : `after ${text(duration(outage))} without it, `;
      const attempts = number('attempt') ?? 1;
      return {
        mood: 'good',
        icon: 'link',
        title: outage === null ? 'Connected to Redis' : 'Redis is back',
        detail: `${after}${word('address')}, version ${word('version')}, ${attempts === 1 ? 'first attempt' : `attempt ${attempts}`}, took ${text(duration(number('took_ms')))}`,
      };
    }
    case 'connect_failed':
      return {
        mood: 'warn',
        icon: 'cut',
        title: 'Could not connect to Redis',
        detail: `${cause}; attempt ${word('attempt')}, next in ${text(duration(number('retry_in_ms')))}`,
      };
    case 'lost':
      return {
        mood: 'bad',
        icon: 'cut',
        title: 'Connection to Redis lost',
        detail: `${cause}; ${plural(number('unknown') ?? 0, 'call')} without an answer, ${number('not_sent') ?? 0} not sent`,
      };
    case 'overdue':
      return {
        mood: 'warn',
        icon: 'clock',
        title: 'Redis is overdue',
        detail: `silent for ${text(duration(number('quiet_ms')))}; a second connection is dialled to challenge the first`,
      };
    case 'woke':
      return {
        mood: 'good',
        icon: 'link',
        title: 'Redis answers again',
        detail: `the old connection woke after ${text(duration(number('quiet_ms')))}`,
      };
    case 'replaced':
      return { mood: 'warn', icon: 'link', title: 'Connection replaced', detail: cause };
    case 'down':
      return {
        mood: 'bad',
        icon: 'bad',
        title: 'Redis counts as down',
        detail: `calls to it are refused at once; ${cause}`,
      };
    case 'breaker':
      return {
        mood: word('to') === 'closed' ? 'good' : 'warn',
        icon: 'breaker',
        title: `Breaker ${breakerDid(word('to'))}`,
        detail: `was ${breakerName(word('from'))}; ${word('cause')}`,
      };
    case 'fenced':
      return {
        mood: 'idle',
        icon: 'cut',
        title: 'Abandoned connection ended',
        detail: `its id was ${word('id')}; nothing left in it can be applied late`,
      };
    case 'fence_refused':
      return {
        mood: 'warn',
        icon: 'key',
        title: 'May not end abandoned connections',
        detail: `${cause}; writes of unknown outcome are not repeated`,
      };
    case 'reauthenticated':
      return { mood: 'good', icon: 'key', title: 'New credentials accepted', detail: 'the connection goes on' };
    case 'credentials_failed':
      return { mood: 'bad', icon: 'key', title: 'Credentials failed', detail: cause };
    case 'reads_failing':
      return {
        mood: 'bad',
        icon: 'bad',
        title: 'Reads have begun to fail',
        detail: `${text(share(number('share')))} of them; the newest of ${word('query')}: ${word('cause')}`,
      };
    case 'reads_answered':
      return {
        mood: 'good',
        icon: 'good',
        title: 'Reads are answered again',
        detail: `after ${text(duration(number('lasted_ms')))} in which ${plural(number('failed') ?? 0, 'read')} failed`,
      };
    case 'stuck_reset':
      return {
        mood: 'bad',
        icon: 'clock',
        title: 'Reconnecting was stuck, started anew',
        detail: `no progress for ${text(duration(number('stuck_ms')))}`,
      };
    case 'closed':
      return {
        mood: 'idle',
        icon: 'cut',
        title: 'Client closed',
        detail: `${plural(number('unfinished') ?? 0, 'call')} unfinished`,
      };
    case 'started':
      return { mood: 'good', icon: 'service', title: 'Service started', detail: `version ${word('version')}` };
    case 'serving':
      return { mood: 'good', icon: 'service', title: 'Service listening', detail: '' };
    case 'draining':
      return { mood: 'warn', icon: 'service', title: 'Service draining', detail: 'it finishes what it has begun' };
    case 'reload_refused':
      return {
        mood: 'bad',
        icon: 'service',
        title: 'Configuration refused',
        detail: `the old one stays in force; ${word('cause')}`,
      };
    case 'reloaded': {
      const restart = Array.isArray(event.needs_restart) ? event.needs_restart : [];
      return {
        mood: 'good',
        icon: 'service',
        title: 'Configuration read again',
        detail: restart.length > 0 ? `needs a restart: ${restart.join(', ')}` : 'all of it is in force',
      };
    }
    case 'drill': {
      const drill = event.drill as { scenario?: string } | undefined;
      return {
        mood: 'idle',
        icon: 'play',
        title: `Drill started: ${drill?.scenario ?? ''}`,
        detail: 'on servers of its own',
      };
    }
    case 'drill_over': {
      const drill = event.drill as { scenario?: string; state?: string; error?: string } | undefined;
      const state = drill?.state ?? '';
      const mood = ({ passed: 'good', failed: 'warn', broken: 'warn' } as Record<string, Mood>)[state] ?? 'idle';
      return {
        mood,
        icon: 'play',
        title: `Drill ${state === 'broken' ? 'came to no verdict' : state}: ${drill?.scenario ?? ''}`,
        detail: drill?.error ?? 'its report is kept below, with the drills',
      };
    }
    case 'missed':
      return {
        mood: 'warn',
        icon: 'warn',
        title: `${plural(number('events') ?? 0, 'event')} missed`,
        detail: 'they came faster than they could be told',
      };
    default:
      return { mood: 'idle', icon: 'service', title: capital(event.event.replaceAll('_', ' ')), detail: '' };
  }
}

export interface Group {
  first: Noted;
  last: Noted;
  count: number;
}

/** Newest first, with runs of the same failure drawn together: forty attempts are one thing that happened. */
export function grouped(events: readonly Noted[]): Group[] {
  const groups: Group[] = [];
  for (const event of events) {
    const open = groups.at(-1);
    if (
      open &&
      event.event === 'connect_failed' &&
      open.last.event === 'connect_failed' &&
      open.last.cause === event.cause
    ) {
      open.last = event;
      open.count += 1;
    } else {
      groups.push({ first: event, last: event, count: 1 });
    }
  }
  return groups.reverse();
}

/** As `tell`, for a group. */
export function tellGroup(group: Group): Told {
  const told = tell(group.last);
  if (group.count === 1) return told;
  const over = text(duration(group.last.at_ms - group.first.at_ms));
  return { ...told, detail: `${group.count} attempts in ${over}. ${told.detail}` };
}

/** Something that happened, told as one thing: an event, or an outage of Redis from its loss to its end. */
export interface Story extends Told {
  key: string;
  /** When it began, if it goes on; else when it ended. */
  at: number;
}

interface Outage {
  first: Noted;
  last: Noted;
  attempts: number;
  cause: string;
}

/** What belongs to an outage once it has begun. */
const OF_OUTAGES = new Set(['lost', 'down', 'connect_failed', 'overdue', 'breaker', 'fenced', 'credentials_failed']);
/** With a new connection, or with the old one, which woke. */
const ENDS_OUTAGES = new Set(['connected', 'replaced', 'woke']);
const BEGIN_OUTAGES = new Set(['lost', 'down', 'connect_failed', 'credentials_failed']);
/** The breaker closes a moment after Redis is back: that is no news. */
const AFTERMATH_MS = 10_000;

/** Newest first. Forty attempts, a breaker and a connection are one outage. */
export function stories(events: readonly Noted[]): Story[] {
  const told: Story[] = [];
  let outage: Outage | null = null;
  let over = 0;
  for (const event of events) {
    if (outage && OF_OUTAGES.has(event.event)) {
      outage.last = event;
      outage.attempts += Number(event.event === 'connect_failed');
      if (event.event === 'connect_failed' && event.cause) outage.cause = String(event.cause);
    } else if (BEGIN_OUTAGES.has(event.event)) {
      outage = {
        first: event,
        last: event,
        attempts: Number(event.event === 'connect_failed'),
        cause: String(event.cause ?? ''),
      };
    } else if (ENDS_OUTAGES.has(event.event) && outage) {
      told.push(ended(outage, event));
      outage = null;
      over = event.at_ms;
    } else if (event.event !== 'breaker' || event.to !== 'closed' || event.at_ms - over > AFTERMATH_MS) {
      told.push({ ...tell(event), key: event.id, at: event.at_ms });
    }
  }
  if (outage) told.push(goesOn(outage));
  return told.reverse();
}

function goesOn({ first, last, attempts, cause }: Outage): Story {
  const tried = attempts > 0 ? `${plural(attempts, 'attempt')} so far. ` : '';
  return {
    mood: 'bad',
    icon: 'cut',
    title: 'Redis is away',
    detail: `${tried}${capital(cause)}`,
    key: `${first.id}${last.id}`,
    at: first.at_ms,
  };
}

function ended({ first, attempts, cause }: Outage, back: Noted): Story {
  const away = typeof back.outage_ms === 'number' ? back.outage_ms : back.at_ms - first.at_ms;
  return {
    mood: 'good',
    icon: 'link',
    title: 'Redis is back',
    detail: `It was away for ${text(duration(away))}, ${plural(attempts + 1, 'attempt')}. ${capital(cause)}`,
    key: back.id,
    at: back.at_ms,
  };
}

export function breakerName(state: string): string {
  return state === 'half_open' ? 'half-open' : state;
}

function breakerDid(state: string): string {
  return { open: 'opened', closed: 'closed', half_open: 'half-open' }[state] ?? state;
}

export function redisName(state: string): string {
  return { ready: 'In service', connecting: 'Connecting', down: 'Down', closed: 'Closed' }[state] ?? capital(state);
}

export function capital(words: string): string {
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export function plural(number: number, noun: string): string {
  return `${count(number)} ${noun}${number === 1 ? '' : 's'}`;
}

/** For those who cannot see a chart. */
export function chartSummary(total: Sum): string {
  if (total.calls === 0) return 'No calls in the last five minutes.';
  const part = (reads: number) => text(share(total.calls ? reads / total.calls : 0));
  return `${plural(total.calls, 'call')} in the last ${text(duration(total.seconds * 1000))}: memory ${part(total.memory)}, Redis ${part(total.redis)}, database ${part(total.database)}, ${count(total.failed)} failed.`;
}

export function when(event: Noted, now: number): string {
  return ago(now - event.at_ms);
}
