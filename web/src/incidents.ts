// Incidents: what went wrong from its beginning to its end, as objects that can be shown, drawn on a chart and copied for a colleague.
// Pure: what the service says goes in.
import { count, duration, moment, text } from './format';
import { type Trouble, RUNBOOK, runbook } from './runbook';
import type { Noted } from './store';
import { BLIP_MS, capital, type Mood } from './words';
import type { Outage, Status } from './wire';

/** An outage in words. */
export interface Incident {
  key: string;
  mood: Mood;
  title: string;
  trouble: Trouble;
  since: number;
  /** `null` while it lasts. */
  until: number | null;
  facts: [string, string][];
}

/** Newest first. */
export function incidents(status: Status | null): Incident[] {
  const told = (outage: Outage) => incident(outage, status?.redis);
  return (status?.outages ?? []).map(told).sort((a, b) => b.since - a.since);
}

const NAMES: Record<Outage['of'], { lasts: string; over: string; trouble: Trouble }> = {
  redis: { lasts: 'Redis is away', over: 'Redis was away', trouble: 'down' },
  database: { lasts: 'The database is away', over: 'The database was away', trouble: 'database' },
  reads: { lasts: 'Reads fail', over: 'Reads failed', trouble: 'reads' },
};
const FLAPPING: (typeof NAMES)['redis'] = { lasts: 'Redis flaps', over: 'Redis flapped', trouble: 'flapping' };

/** What flapped may be away for good: then that is what is so. */
const AWAY: (typeof NAMES)['redis'] = { lasts: 'Redis is away, and flapped before', over: '', trouble: 'down' };

function incident(outage: Outage, redis?: Status['redis']): Incident {
  const { of, began_ms: since, ended_ms: until } = outage;
  const flaps = outage.flapping && until === null;
  const away = flaps && redis && redis.state !== 'ready' && redis.state_for_ms > BLIP_MS ? redis.state_for_ms : null;
  const { lasts, over, trouble } = away !== null ? AWAY : outage.flapping ? FLAPPING : NAMES[of];
  return {
    key: `${of}-${since}`,
    mood: until !== null ? 'idle' : flaps && away === null ? 'warn' : 'bad',
    title: until === null ? lasts : over,
    trouble,
    since,
    until,
    facts: [
      ['Cause', capital(outage.cause)],
      ...(of === 'redis' ? wire(outage) : []),
      ...felt(outage),
      recovery(outage, away),
    ],
  };
}

/** What an outage of Redis did to the connection. */
function wire({ detection_ms, flapping, times, attempts, refused, unknown }: Outage): [string, string][] {
  return [
    ['Noticed', detection_ms === null ? 'at once' : `after ${text(duration(detection_ms))} of silence`],
    ...(flapping ? [['Lost and replaced', `${count(times)} times`] as [string, string]] : []),
    ['Attempts that failed', count(attempts)],
    ['Calls refused at once', count(refused)],
    ['Outcomes unknown', count(unknown)],
  ];
}

/** What callers felt of it. */
function felt({ calls, failed, stale, slow, writes, writes_failed }: Outage): [string, string][] {
  const reads = calls > 0 ? ` of ${count(calls)}` : '';
  const changes = writes + writes_failed;
  return [
    ['Reads failed', `${count(failed)}${reads}`],
    ['Reads stale, slow', `${count(stale)}, ${count(slow)}`],
    ...(changes > 0 ? [['Writes failed', `${count(writes_failed)} of ${count(changes)}`] as [string, string]] : []),
  ];
}

function recovery({ began_ms, ended_ms, ended_by, flapping }: Outage, away: number | null): [string, string] {
  if (away !== null) return ['Recovery', `not yet: away for ${text(duration(away))} now`];
  if (ended_ms === null) return ['Recovery', flapping ? 'back each time, and not steady yet' : 'not yet'];
  const others = ended_by === 'succeeded' ? 'others took over' : 'answered again';
  const how = ended_by === 'reconnected' ? 'by a new connection' : others;
  return ['Recovery', `${how}, after ${text(duration(ended_ms - began_ms))}`];
}

/** An incident as text, for the channel in which it is talked about. */
export function report(incident: Incident, service: { namespace: string; version: string; address: string }): string {
  const { since, until } = incident;
  const lasted = until === null ? 'still going on' : `${moment(until)} (${plain(duration(until - since))})`;
  return [
    `${incident.title}: ${service.namespace} at ${service.address}, Steadfast ${service.version}`,
    `Since: ${moment(since)}`,
    `Until: ${lasted}`,
    ...incident.facts.map(([name, value]) => `${name}: ${value.replaceAll(/[\u00a0\u202f]/g, ' ')}`),
    `Runbook: ${RUNBOOK[incident.trouble].title}, ${service.address}${runbook(incident.trouble)}`,
  ].join('\n');
}

function plain(figure: { value: string; unit: string }): string {
  return text(figure).replaceAll('\u00a0', ' ');
}

/** What is drawn behind the curves: from when until when, and in which colour. */
export interface Band {
  kind: 'outage' | 'database' | 'failing' | 'drill' | 'restart' | 'reload';
  from: number;
  /** The same as `from` for what takes no time. */
  to: number;
}

/** Bands within a span of time. */
export function bands(found: readonly Incident[], events: readonly Noted[], from: number, to: number): Band[] {
  const all: Band[] = found.map(({ trouble, since, until }) => ({
    kind: trouble === 'reads' ? 'failing' : trouble === 'database' ? 'database' : 'outage',
    from: since,
    to: until ?? to,
  }));
  let drill: Band | null = null;
  for (const { event, at_ms } of events) {
    if (event === 'started') all.push({ kind: 'restart', from: at_ms, to: at_ms });
    if (event === 'reloaded') all.push({ kind: 'reload', from: at_ms, to: at_ms });
    if (event === 'drill') {
      drill = { kind: 'drill', from: at_ms, to };
      all.push(drill);
    }
    if (event === 'drill_over' && drill) {
      drill.to = at_ms;
      drill = null;
    }
  }
  return all.filter((band) => band.to >= from && band.from <= to);
}

const BAND_NAMES: Record<Band['kind'], [string, string]> = {
  outage: ['outage of Redis', 'outages of Redis'],
  database: ['outage of the database', 'outages of the database'],
  failing: ['time of failing reads', 'times of failing reads'],
  drill: ['drill', 'drills'],
  restart: ['start', 'starts'],
  reload: ['reload', 'reloads'],
};

/** "2 outages, 1 drill", for those who cannot see them. */
export function bandsInWords(shown: readonly Band[]): string {
  const kinds = Object.entries(BAND_NAMES).map(([kind, [one, many]]): [number, string, string] => [
    shown.filter((band) => band.kind === kind).length,
    one,
    many,
  ]);
  return kinds
    .filter(([number]) => number > 0)
    .map(([number, one, many]) => `${number} ${number === 1 ? one : many}`)
    .join(', ');
}
