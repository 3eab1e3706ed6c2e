// Six figures that tell trouble early, each with its last minutes and what is normal for it.
import { at, h, redraw, svg } from './dom';
import { duration, type Figure, rate, share } from './format';
import { spanOf, spread, type Store, sum } from './store';
import type { Mood } from './words';
import { mark } from './marks';
import type { Tick } from './wire';

interface Tile {
  name: string;
  normal: string;
  colour: string;
  of: (tick: Tick) => number | null | undefined;
  /** The figure over the last ten seconds, and whether it is as it should be. */
  now: (ticks: Tick[], warm: boolean) => { figure: Figure; mood: Mood };
}

const fine = (figure: Figure, good: boolean): { figure: Figure; mood: Mood } => ({
  figure,
  mood: good ? 'good' : 'warn',
});
const fallback = (tick: Tick) => {
  const { memory, redis, database } = tick.reads;
  const answered = memory + redis + database;
  return answered ? database / answered : null;
};

/** A cache that has just been started has to be filled, which is nothing to be warned of. */
const COLD_MS = 600_000;
/** A share of fewer answers says nothing. */
const FEW = 20;

const TILES: Tile[] = [
  {
    name: 'Hits',
    normal: 'over 80 %, once warm',
    colour: 'memory',
    of: (tick) => tick.hit_rate,
    now: (ticks, warm) => {
      const { memory, redis, answered } = sum(ticks);
      const part = answered ? (memory + redis) / answered : null;
      return fine(share(part), part === null || part >= 0.8 || !warm || answered < FEW);
    },
  },
  {
    name: 'Errors',
    normal: 'under 1 %',
    colour: 'failed',
    of: (tick) => tick.error_rate,
    now: (ticks) => {
      const { failed, calls } = sum(ticks);
      return { figure: share(calls ? failed / calls : null), mood: !calls || failed / calls < 0.01 ? 'good' : 'bad' };
    },
  },
  {
    name: 'Fallback to the database',
    normal: 'under 5 %, once warm',
    colour: 'database',
    of: fallback,
    now: (ticks, warm) => {
      const { database, answered } = sum(ticks);
      const part = answered ? database / answered : null;
      return fine(share(part), part === null || part < 0.05 || !warm || answered < FEW);
    },
  },
  {
    name: 'Redis round trip',
    normal: 'under 5 ms',
    colour: 'redis',
    of: (tick) => (tick.redis === 'ready' ? tick.rtt_ms : null),
    now: (ticks) => {
      const last = ticks.at(-1);
      const rtt = last?.redis === 'ready' ? last.rtt_ms : null;
      return fine(duration(rtt), rtt !== null && rtt !== undefined && rtt < 5);
    },
  },
  {
    name: 'Loads on SQL, a second',
    normal: 'as in quiet times',
    colour: 'database',
    of: (tick) => tick.loads,
    now: (ticks) => {
      const total = ticks.reduce((all, tick) => all + tick.loads, 0);
      return fine({ value: ticks.length ? rate(total / ticks.length) : '–', unit: '' }, true);
    },
  },
  {
    name: 'Invalidations waiting',
    normal: 'oldest under 1 s',
    colour: 'p99',
    of: (tick) => tick.outbox_lag_ms ?? 0,
    now: (ticks) => {
      const lag = ticks.at(-1)?.outbox_lag_ms ?? null;
      return fine(lag === null ? { value: 'none', unit: '' } : duration(lag), (lag ?? 0) < 1_000);
    },
  },
];

export function drawTiles(store: Store): void {
  const list = at('tiles');
  if (list.childElementCount !== TILES.length)
    list.replaceChildren(...TILES.map(() => h('li', { class: 'tile card' })));
  const ticks = store.recent(10_000);
  const warm = (store.status?.service.uptime_ms ?? 0) > COLD_MS;
  TILES.forEach((tile, index) => {
    const { figure, mood } = tile.now(ticks, warm);
    const element = list.children[index] as HTMLElement;
    element.dataset.mood = mood;
    redraw(element, `${figure.value}${figure.unit}${mood}${store.tick?.at_ms}`, () => [
      h('p', { class: 'tile-name' }, tile.name),
      h('p', { class: 'tile-figure' }, figure.value, h('small', {}, figure.unit ? `\u202f${figure.unit}` : '')),
      spark(store.ticks, tile),
      h('p', { class: 'tile-normal' }, mood === 'good' ? null : mark(mood), `normal: ${tile.normal}`),
    ]);
  });
}

function spark(ticks: readonly Tick[], tile: Tile): SVGElement {
  const newest = ticks.at(-1)?.at_ms ?? 0;
  const span = spanOf(ticks) * 1000;
  const top = spread(ticks, tile.of)?.most || 1;
  let path = '';
  let before = 0;
  for (const tick of ticks) {
    const value = tile.of(tick);
    if (typeof value !== 'number') {
      before = 0;
      continue;
    }
    const x = 200 - ((newest - tick.at_ms) / span) * 200;
    const y = 31 - (value / top) * 28;
    path += `${before && tick.at_ms - before < 3_500 ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}h.01`;
    before = tick.at_ms;
  }
  return svg(
    'svg',
    { viewBox: '0 0 200 32', preserveAspectRatio: 'none', class: `spark ${tile.colour}`, 'aria-hidden': 'true' },
    svg('path', { d: path || 'M0 31' }),
  );
}
