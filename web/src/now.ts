// The first view: is it serving, from where, how fast, and what happened last.
import { at, h, icon, redraw, say, svg, type Icon } from './dom';
import { count, duration, type Figure, NONE, rate, share, text } from './format';
import { spanOf, spread, sum, type Store, type Sum } from './store';
import { chartSummary, headline, type Mood, stories } from './words';
import type { Status, Tick } from './wire';

export const MOOD_ICON: Record<Mood, Icon> = { good: 'good', warn: 'warn', bad: 'bad', idle: 'idle' };

/** What is called "now". */
const NOW_MS = 10_000;

export function drawNow(store: Store): void {
  const now = sum(store.recent(NOW_MS));
  drawHeadline(store, now);
  drawFigures(store, now);
  const window = now.calls > 0 ? now : sum(store.ticks);
  say(at('path-window'), now.calls > 0 || window.calls === 0 ? 'last 10 s' : 'last 5 min');
  drawPath(store, window, now.calls > 0);
  drawLast(store);
}

function drawHeadline(store: Store, recent: Sum): void {
  const { mood, title, detail } = headline({
    link: store.link,
    tick: store.tick,
    status: store.status,
    recent,
    heardAt: store.heardAt,
    now: Date.now(),
  });
  at('hero').dataset.mood = mood;
  redraw(at('lamp'), mood, () => [icon(MOOD_ICON[mood])]);
  say(at('headline'), title);
  say(at('detail'), detail);
  at('rescue').hidden = store.link.state !== 'lost';
  at('token-form').hidden = store.link.state !== 'refused';
  document.title = `${{ good: '●', warn: '▲', bad: '✕', idle: '○' }[mood]} ${title} · Steadfast`;
}

function drawFigures(store: Store, now: Sum): void {
  const ticks = store.recent(NOW_MS);
  const all = sum(store.ticks);
  figure('f-rate', now.seconds ? { value: rate(now.calls / now.seconds), unit: '' } : NONE);
  figure('f-p50', duration(spread(ticks, (tick) => tick.p50_ms)?.median));
  figure('f-p99', duration(spread(ticks, (tick) => tick.p99_ms)?.most));
  figure(
    'f-failed',
    all.seconds ? { value: count(all.failed), unit: all.calls ? `of ${count(all.calls)}` : '' } : NONE,
  );
  at('f-failed').classList.toggle('bad', all.failed > 0);
}

function figure(id: string, { value, unit }: Figure): void {
  redraw(at(id), `${value}|${unit}`, () => [value, unit ? h('small', {}, `\u00a0${unit}`) : null]);
}

interface Station {
  name: string;
  icon: Icon;
  reads: number;
  mood: Mood;
  words: string;
}

function drawPath({ status, tick, ticks }: Store, window: Sum, live: boolean): void {
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
  const perSecond =
    window.seconds && live
      ? `${rate(window.calls / window.seconds)} a second`
      : window.calls > 0
        ? `${count(window.calls)} in 5 minutes`
        : 'none yet';
  redraw(calls!.firstElementChild as HTMLElement, perSecond, () => [
    h('div', { class: 'station-name' }, icon('calls'), h('b', {}, 'Calls')),
    h(
      'p',
      { class: 'station-share' },
      window.seconds ? rate(live ? window.calls / window.seconds : window.calls) : '–',
    ),
    h('p', { class: 'station-words' }, live ? 'a second' : window.seconds ? 'in 5 minutes' : ''),
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
        station.mood === 'good' ? null : h('span', { class: `mark ${station.mood}` }, icon(MOOD_ICON[station.mood])),
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
  return [
    {
      name: 'Memory',
      icon: 'memory',
      reads: window.memory,
      mood: proven ? 'good' : 'warn',
      words: proven ? 'hears of every change' : 'served as stale until Redis is heard',
    },
    {
      name: 'Redis',
      icon: 'redis',
      reads: window.redis,
      mood: up ? (suspended || tick.breaker !== 'closed' ? 'warn' : 'good') : 'bad',
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
  mix.setAttribute('aria-label', chartSummary(window));
}

function drawLast(store: Store): void {
  const told = stories(store.events).slice(0, 5);
  const now = store.now();
  const list = at('last');
  redraw(list, told.map((story) => story.key).join() || `none${store.link.state}`, () =>
    told.length === 0
      ? [
          h(
            'li',
            { class: 'empty' },
            store.link.state === 'live' ? 'Nothing has happened yet.' : 'Waiting for the service.',
          ),
        ]
      : told.map((story) =>
          h(
            'li',
            { 'data-mood': story.mood },
            h('span', { class: `mark ${story.mood}` }, icon(story.icon)),
            h(
              'div',
              {},
              h('p', {}, h('b', {}, story.title), h('time', { datetime: new Date(story.at).toISOString() })),
              story.detail ? h('p', { class: 'soft', title: story.detail }, story.detail) : null,
            ),
          ),
        ),
  );
  list.querySelectorAll('time').forEach((element, index) => {
    const age = now - told[index]!.at;
    say(element, age < 2_000 ? 'now' : text(duration(Math.floor(age / 1000) * 1000)));
  });
}
