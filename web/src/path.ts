// Where answers come from: a station for each source, in the order in which they are asked.
import { at, h, icon, type Icon, redraw, svg } from './dom';
import { count, duration, rate, share, text } from './format';
import { spanOf, type Store, type Sum } from './store';
import { mark } from './marks';
import { chartSummary, type Mood } from './words';
import type { Status, Tick } from './wire';

interface Station {
  name: string;
  icon: Icon;
  reads: number;
  mood: Mood;
  words: string;
}

export function drawPath({ status, tick, ticks }: Store, window: Sum, live: boolean): void {
  const list = at('stations');
  const stations = tick ? stationsOf(status, tick, window) : [];
  // Of calls asked, so that failures do not make the rest look whole.
  const part = (reads: number) => (window.calls ? reads / window.calls : null);
  if (list.childElementCount !== 4)
    list.replaceChildren(
      ...['calls', 'memory', 'redis', 'database'].map((name) =>
        h('li', { class: `station ${name}` }, h('div'), trace()),
      ),
    );
  const all = [...list.children] as HTMLElement[];
  const [calls, ...places] = all;
  drawTraces(all, ticks);
  const reads = window.seconds ? rate(live ? window.calls / window.seconds : window.calls) : '–';
  const over = live ? 'a second' : window.seconds ? `in ${text(duration(window.seconds * 1000))}` : '';
  redraw(calls!.firstElementChild as HTMLElement, `${reads}${over}`, () => [
    h('div', { class: 'station-name' }, icon('calls'), h('b', {}, 'Reads')),
    h('p', { class: 'station-share' }, reads),
    h('p', { class: 'station-words' }, over),
  ]);
  let left = window.calls > 0 ? 1 : 0;
  calls!.dataset.flow = flow(left);
  places.forEach((place, index) => {
    const station = stations[index];
    const words = place.firstElementChild as HTMLElement;
    if (!station) {
      redraw(words, 'waiting', () => [h('p', { class: 'ghost' })]);
      return;
    }
    place.dataset.mood = station.mood;
    const figure = share(part(station.reads));
    left = Math.max(0, left - (part(station.reads) ?? 0));
    place.dataset.flow = flow(index === 2 ? 0 : left);
    redraw(words, `${station.mood}|${text(figure)}|${station.words}`, () => [
      h(
        'div',
        { class: 'station-name' },
        icon(station.icon),
        h('b', {}, station.name),
        station.mood === 'good' ? null : mark(station.mood),
      ),
      h('p', { class: 'station-share' }, figure.value, h('small', {}, figure.unit ? `\u202f${figure.unit}` : '')),
      h('p', { class: 'station-words' }, station.words),
    ]);
  });
  drawMix(window);
}

/** Calls a second of one station in the minutes before, all on one scale. */
function trace(): SVGElement {
  return svg(
    'svg',
    { viewBox: '0 0 200 60', preserveAspectRatio: 'none', class: 'trace', 'aria-hidden': 'true' },
    svg('path', { class: 'area' }),
    svg('path', { class: 'line' }),
  );
}

const TRACED: ((tick: Tick) => number)[] = [
  ({ reads }) => reads.memory + reads.redis + reads.database + reads.failed,
  ({ reads }) => reads.memory,
  ({ reads }) => reads.redis,
  ({ reads }) => reads.database,
];

function drawTraces(stations: HTMLElement[], ticks: readonly Tick[]): void {
  const newest = ticks.at(-1)?.at_ms ?? 0;
  const span = spanOf(ticks) * 1000;
  const top = Math.max(1, ...ticks.map(TRACED[0]!));
  stations.forEach((station, index) => {
    const points = ticks.map(
      (tick) =>
        `${(200 - ((newest - tick.at_ms) / span) * 200).toFixed(1)} ${(58 - (TRACED[index]!(tick) / top) * 54).toFixed(1)}`,
    );
    const [area, line] = station.querySelectorAll('.trace path');
    const from = points[0]?.split(' ')[0] ?? '0';
    line!.setAttribute('d', points.length > 1 ? `M${points.join('L')}` : '');
    area!.setAttribute('d', points.length > 1 ? `M${from} 60L${points.join('L')}L200 60Z` : '');
  });
}

/** How thick the line onward is drawn: nothing, a little, some, most. */
function flow(left: number): string {
  if (left <= 0.0005) return '0';
  if (left < 0.1) return '1';
  return left < 0.6 ? '2' : '3';
}

function stationsOf(status: Status | null, tick: Tick, window: Sum): Station[] {
  const up = tick.redis === 'ready';
  const suspended = status?.cache.redis?.suspended;
  const flapping = status?.redis.flapping;
  const database = status?.health.checks.database;
  const proven = status?.cache.memory_proven ?? true;
  const guard = status?.cache.guard;
  const redisWords = !up
    ? tick.redis === 'connecting'
      ? 'connecting'
      : 'down, skipped'
    : suspended
      ? `not in use yet: ${suspended}`
      : tick.breaker !== 'closed'
        ? 'breaker lets few calls through'
        : flapping
          ? `flaps: lost and replaced ${count(flapping.reconnects)} times`
          : tick.rtt_ms === null
            ? 'in service'
            : `answers in ${text(duration(tick.rtt_ms))}`;
  const databaseWords =
    database?.status === 'unhealthy'
      ? database.message
      : guard?.open
        ? 'guarded: loads are held back'
        : guard?.waiting
          ? `guarded: ${guard.waiting} loads wait`
          : `${rate(window.seconds ? window.database / window.seconds : 0)} reads a second`;
  const stale =
    window.stale > 0
      ? `${count(window.stale)} of ${count(window.answered)} answers stale`
      : 'hears of no changes just now: what it holds counts as stale';
  return [
    {
      name: 'Memory',
      icon: 'memory',
      reads: window.memory,
      mood: proven ? 'good' : 'warn',
      words: proven ? 'hears of every change' : stale,
    },
    {
      name: 'Redis',
      icon: 'redis',
      reads: window.redis,
      mood: up ? (suspended || flapping || tick.breaker !== 'closed' ? 'warn' : 'good') : 'bad',
      words: redisWords,
    },
    {
      name: 'Database',
      icon: 'database',
      reads: window.database,
      mood: database?.status === 'unhealthy' ? 'bad' : guard?.open || guard?.waiting ? 'warn' : 'good',
      words: databaseWords,
    },
  ];
}

function drawMix(window: Sum): void {
  const mix = at('mix');
  const parts: [string, number][] = [
    ['memory', window.memory],
    ['redis', window.redis],
    ['database', window.database],
    ['failed', window.failed],
  ];
  if (mix.childElementCount !== parts.length) mix.replaceChildren(...parts.map(([name]) => h('i', { class: name })));
  parts.forEach(([, reads], index) => {
    (mix.children[index] as HTMLElement).style.flexGrow = String(window.calls ? reads / window.calls : 0);
  });
  mix.setAttribute('aria-label', chartSummary(window, `the last ${text(duration(window.seconds * 1000))}`));
}
