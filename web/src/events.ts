// What happened, as one would tell it. Pure: events in, sentences out.
import type { Icon } from './dom';
import { clock, duration, share, text } from './format';
import { type Trouble, troubleOf } from './runbook';
import type { Noted } from './store';
import { breakerName, capital, type Mood, plural } from './words';

export interface Told {
  mood: Mood;
  icon: Icon;
  title: string;
  detail: string;
  /** What the runbook speaks of it under. */
  trouble?: Trouble | null;
}

/** An event in plain words. */
export function tell(event: Noted): Told {
  const told = inWords(event);
  return { ...told, trouble: told.mood === 'warn' || told.mood === 'bad' ? troubleOf(event.event) : null };
}

function inWords(event: Noted): Told {
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
    case 'unresponsive':
      return {
        mood: 'warn',
        icon: 'clock',
        title: 'Redis does not answer',
        detail: `silent for ${text(duration(number('quiet_ms')))}; a second connection is tried`,
      };
    case 'recovered':
      return {
        mood: 'good',
        icon: 'link',
        title: 'Redis answers again',
        detail: `the connection answered again after ${text(duration(number('quiet_ms')))}`,
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
        detail: `${text(share(number('share')))} of them; the newest failure: ${named(word('query'), word('cause'))}`,
      };
    case 'reads_answered':
      return {
        mood: 'good',
        icon: 'good',
        title: 'Reads are answered again',
        detail: `after ${text(duration(number('lasted_ms')))} in which ${plural(number('failed') ?? 0, 'read')} failed`,
      };
    case 'flapping':
      return {
        mood: 'warn',
        icon: 'link',
        title: 'The connection to Redis flaps',
        detail: `lost and replaced ${plural(number('reconnects') ?? 0, 'time')} since ${clock(number('since_ms') ?? event.at_ms)}; the newest cause: ${word('cause')}`,
      };
    case 'flapping_ended':
      return {
        mood: 'good',
        icon: 'link',
        title: 'The connection to Redis is steady again',
        detail: `it was lost and replaced ${plural(number('reconnects') ?? 0, 'time')} in ${text(duration((number('last_ms') ?? event.at_ms) - (number('since_ms') ?? event.at_ms)))}; the last cause: ${word('cause')}`,
      };
    case 'failed_over':
      return failedOver(event);
    case 'other_cluster':
      return {
        mood: 'bad',
        icon: 'link',
        title: 'A seed leads to another cluster',
        detail: `${word('address')} answers for it; ${
          event.believed === true ? 'it is taken for ours, made anew' : 'it is not believed'
        }`,
      };
    case 'stuck_reset':
      return {
        mood: 'bad',
        icon: 'clock',
        title: 'Reconnecting was stuck, started anew',
        detail: `no progress for ${text(duration(number('stuck_ms')))}`,
      };
    case 'retired':
      return {
        mood: 'good',
        icon: 'link',
        title: 'Other servers took over',
        detail: `${word('node')} is no longer needed; ${plural(number('refused') ?? 0, 'call')} refused meanwhile`,
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
    case 'certificate_renewed':
      return { mood: 'good', icon: 'key', title: 'Certificate renewed', detail: 'new connections get the new one' };
    case 'certificate_refused':
      return {
        mood: 'bad',
        icon: 'key',
        title: 'New certificate refused',
        detail: `the old one stays in force; ${word('why')}`,
      };
    case 'reload_late':
      return { mood: 'warn', icon: 'service', title: 'Configuration not read yet', detail: cause };
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
      const mood =
        ({ passed: 'good', failed: 'warn', void: 'warn', broken: 'warn' } as Record<string, Mood>)[state] ?? 'idle';
      return {
        mood,
        icon: 'play',
        title: `Drill ${{ broken: 'came to no verdict', void: 'proved nothing' }[state] ?? state}: ${drill?.scenario ?? ''}`,
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

/** Another primary, and what became of the data: what somebody who was woken for it has to know first. */
function failedOver(event: Noted): Told {
  const { from, to, epoch, votes, voters } = event;
  const told = event.history as { is?: string; certain_ms_ago?: number | null; at_risk?: number } | undefined;
  const who = `${String(to)} is the primary in place of ${String(from)} (epoch ${String(epoch)}, named by ${String(votes)} of ${plural(Number(voters), 'sentinel')})`;
  const icon = 'link';
  if (told?.is === 'same' && !told.at_risk) {
    const detail = `${who}. It has the old one’s data: no write that was acknowledged here is lost.`;
    return { mood: 'good', icon, title: 'Redis failed over, nothing is lost', detail };
  }
  if (told?.is === 'same') {
    const risk = plural(told.at_risk ?? 0, 'acknowledged write');
    const certain =
      typeof told.certain_ms_ago === 'number'
        ? `What was acknowledged until ${text(duration(told.certain_ms_ago))} before is safe; the ${risk} after that may be lost.`
        : `${capital(risk)} may be lost.`;
    const detail = `${who}. It has the old one’s data, up to a point. ${certain}`;
    return { mood: 'warn', icon, title: `Redis failed over, ${risk} at risk`, detail };
  }
  if (told?.is === 'forked') {
    const detail = `${who}. Its data has another history: nothing says which acknowledged writes have survived. The cache reads from the database until it has proof.`;
    return { mood: 'bad', icon, title: 'Redis failed over to other data', detail };
  }
  const detail = `${who}. Its data could not be compared with the old one’s: ROLE or INFO is not allowed, or it did not serve within 10 s. Acknowledged writes may be lost.`;
  return { mood: 'warn', icon, title: 'Redis failed over, losses not known', detail };
}

/** A cause with the name of its query, which many causes hold already. */
function named(query: string, cause: string): string {
  return cause.includes(`\`${query}\``) ? cause : `\`${query}\`: ${cause}`;
}

/** Kinds of events of which flapping consists. */
const PARTS = new Set([
  'lost',
  'connected',
  'connect_failed',
  'down',
  'breaker',
  'fenced',
  'unresponsive',
  'recovered',
  'replaced',
]);

/** The events with each time of flapping as one, which grows: what it consists of is not told beside it. */
function withoutFlaps(events: readonly Noted[]): Noted[] {
  const flaps = new Map<string, { since: number; until: number; newest: Noted }>();
  const name = (event: Noted) => `${event.connection}:${event.since_ms}`;
  for (const event of events) {
    if (event.event !== 'flapping' && event.event !== 'flapping_ended') continue;
    flaps.set(name(event), { since: Number(event.since_ms), until: event.at_ms, newest: event });
  }
  if (flaps.size === 0) return [...events];
  for (const flap of flaps.values()) {
    if (flap.newest.event === 'flapping_ended') continue;
    // It goes on: a loss that has been made good since it was last told of belongs to it.
    for (const event of events) {
      if (event.event === 'connected' && event.connection === flap.newest.connection) {
        flap.until = Math.max(flap.until, event.at_ms);
      }
    }
  }
  const isPart = (event: Noted) =>
    PARTS.has(event.event) &&
    [...flaps.values()].some(
      ({ since, until, newest }) =>
        newest.connection === event.connection && event.at_ms >= since && event.at_ms <= until,
    );
  return events.filter(
    (event) => flaps.get(name(event))?.newest === event || (!flaps.has(name(event)) && !isPart(event)),
  );
}

export interface Group {
  first: Noted;
  last: Noted;
  count: number;
}

/** Newest first, with runs of the same failure drawn together: forty attempts are one thing that happened. */
export function grouped(events: readonly Noted[]): Group[] {
  const groups: Group[] = [];
  for (const event of withoutFlaps(events)) {
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
const OF_OUTAGES = new Set([
  'lost',
  'down',
  'connect_failed',
  'unresponsive',
  'breaker',
  'fenced',
  'credentials_failed',
]);
/** With a new connection, with the old one, which answers again, or by others in a node's place. */
const ENDS_OUTAGES = new Set(['connected', 'replaced', 'recovered', 'retired']);
const BEGIN_OUTAGES = new Set(['lost', 'down', 'connect_failed', 'credentials_failed']);
/** The breaker closes a moment after Redis is back: that is no news. */
const AFTERMATH_MS = 10_000;

/** Newest first. Forty attempts, a breaker and a connection are one outage. */
export function stories(events: readonly Noted[]): Story[] {
  const told: Story[] = [];
  let outage: Outage | null = null;
  let over = 0;
  for (const event of withoutFlaps(events)) {
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
    trouble: 'down',
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
    title: back.event === 'retired' ? 'Other servers took over' : 'Redis is back',
    detail: `It was away for ${text(duration(away))}, ${plural(attempts + 1, 'attempt')}. ${capital(cause)}`,
    key: back.id,
    at: back.at_ms,
  };
}

function breakerDid(state: string): string {
  return { open: 'opened', closed: 'closed', half_open: 'half-open' }[state] ?? state;
}
