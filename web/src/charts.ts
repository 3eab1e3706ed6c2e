// Charts over the last minutes. Each says in words what it shows, because a canvas says nothing to those who cannot see it.
import uPlot from '../vendor/uplot/uPlot.js';
import { clock, duration, rate, text } from './format';
import { at, h, say } from './dom';
import { chartSummary } from './words';
import { spanOf, sum } from './store';
import type { Tick } from './wire';

export interface Line {
  name: string;
  /** A custom property of the style sheet. */
  colour: string;
}

export const SOURCES: Line[] = [
  { name: 'memory', colour: '--memory' },
  { name: 'Redis', colour: '--redis' },
  { name: 'database', colour: '--database' },
  { name: 'failed', colour: '--failed' },
];

const LATENCIES: (Line & { of: (tick: Tick) => number | null | undefined })[] = [
  { name: 'half', colour: '--p50', of: (tick) => tick.p50_ms },
  { name: '99 %', colour: '--p99', of: (tick) => tick.p99_ms },
  { name: '99.9 %', colour: '--p999', of: (tick) => tick.p999_ms },
];

type Column = (number | null)[];

/** A chart in an element, drawn anew when the theme or the width changes. */
export class Chart {
  private plot: uPlot | null = null;
  private data: uPlot.AlignedData = [[]];
  private range: [number, number] = [0, 1];

  constructor(
    private readonly element: HTMLElement,
    private readonly options: (style: Style) => Omit<uPlot.Options, 'width' | 'height'>,
    private readonly pointed: (index: number | null) => void = () => {},
    private readonly height = 210,
  ) {
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(element);
  }

  draw(data: uPlot.AlignedData, range: [number, number]): void {
    this.data = data;
    this.range = range;
    if (!this.plot) this.make();
    else {
      this.plot.batch(() => {
        this.plot!.setData(data, false);
        this.plot!.setScale('x', { min: range[0], max: range[1] });
      });
    }
  }

  remake(): void {
    this.plot?.destroy();
    this.plot = null;
    if (this.data[0].length > 0) this.make();
  }

  private size() {
    return { width: Math.max(200, this.element.clientWidth), height: this.height };
  }

  private make(): void {
    const options: uPlot.Options = {
      ...this.size(),
      ...this.options(style()),
      legend: { show: false },
      hooks: { setCursor: [(plot: uPlot) => this.pointed(plot.cursor.idx ?? null)] },
    };
    this.plot = new uPlot(options, this.data, this.element);
    this.plot.setScale('x', { min: this.range[0], max: this.range[1] });
  }
}

export interface Style {
  colour: (name: string) => string;
  axis: (more: Partial<uPlot.Axis>) => uPlot.Axis;
}

function style(): Style {
  const computed = getComputedStyle(document.documentElement);
  const colour = (name: string) => computed.getPropertyValue(name).trim();
  const axis = (more: Partial<uPlot.Axis>): uPlot.Axis => ({
    font: '12px Geist, system-ui, sans-serif',
    stroke: colour('--soft'),
    grid: { stroke: colour('--grid'), width: 1 },
    ticks: { show: false },
    gap: 6,
    ...more,
  });
  return { colour, axis };
}

export const cursor: uPlot.Cursor = { y: false, points: { size: 7 }, drag: { x: false, y: false } };

/** A time axis as a clock without a date. */
function times({ axis }: Style): uPlot.Axis {
  const short = (values: number[]) => (values.every((value) => value % 60 === 0) ? 5 : 8);
  return axis({
    size: 28,
    grid: { show: false },
    space: 70,
    incrs: [15, 30, 60, 120],
    values: (plot, values) =>
      values.map((value) => (value < leftmost(plot) ? '' : clock(value * 1000).slice(0, short(values)))),
  });
}

/** Further left a label would run into those of the other axis. */
function leftmost({ scales }: uPlot): number {
  const { min = 0, max = 0 } = scales.x!;
  return min! + (max! - min!) * 0.05;
}

/** Options of a chart whose columns lie on top of each other; the last column given is the topmost sum. */
export function stackedOptions(lines: Line[], xAxis: (style: Style) => uPlot.Axis, top = (most: number) => most) {
  return (style: Style): Omit<uPlot.Options, 'width' | 'height'> => ({
    cursor,
    scales: { x: { time: false }, y: { range: (_, __, max) => [0, Math.max(1, top(max) * 1.1)] } },
    axes: [
      xAxis(style),
      style.axis({ size: 46, space: 40, values: (_, values) => values.map((value) => rate(value)) }),
    ],
    series: [
      {},
      // The sum of all is drawn first and the lowest last, so that each covers what lies under it.
      ...lines.toReversed().map(({ colour }) => ({
        stroke: style.colour(colour),
        fill: style.colour(`${colour}-fill`),
        width: 1.5,
        points: { show: false },
        paths: uPlot.paths.stepped!({ align: 1 }),
      })),
    ],
  });
}

/** Columns on top of each other, the topmost first. */
export function stack(columns: Column[]): Column[] {
  const sums: Column[] = [];
  let below: Column | null = null;
  for (const column of columns) {
    const under: Column | null = below;
    below = column.map((value, index) => (value === null ? null : value + (under?.[index] ?? 0)));
    sums.push(below);
  }
  return sums.toReversed();
}

/** The two large charts. */
export class Charts {
  private readonly calls: Chart;
  private readonly latency: Chart;
  private shown: (Tick | null)[] = [];
  private pointed: number | null = null;

  constructor() {
    const point = (index: number | null) => {
      this.pointed = index;
      this.legends();
    };
    this.calls = new Chart(at('calls-chart'), stackedOptions(SOURCES, times), point);
    this.latency = new Chart(at('latency-chart'), latencyOptions, point);
    legend('calls-legend', SOURCES);
    legend('latency-legend', LATENCIES);
  }

  draw(ticks: readonly Tick[]): void {
    const newest = ticks.at(-1);
    if (!newest) return;
    this.shown = withGaps(ticks);
    let last = 0;
    const xs = this.shown.map((tick) => (last = tick ? tick.at_ms / 1000 : last + 1));
    const range: [number, number] = [newest.at_ms / 1000 - spanOf(ticks), newest.at_ms / 1000];
    const reads = (name: 'memory' | 'redis' | 'database' | 'failed'): Column =>
      this.shown.map((tick) => tick?.reads[name] ?? null);
    this.calls.draw(
      [xs, ...stack([reads('memory'), reads('redis'), reads('database'), reads('failed')])] as uPlot.AlignedData,
      range,
    );
    this.latency.draw(
      [xs, ...LATENCIES.map(({ of }) => this.shown.map((tick) => (tick && of(tick)) ?? null))] as uPlot.AlignedData,
      range,
    );
    at('calls-chart').setAttribute('aria-label', chartSummary(sum(ticks)));
    const slow = LATENCIES.map(({ name, of }) => `${name}: ${text(duration(of(newest) ?? null))}`).join(', ');
    at('latency-chart').setAttribute('aria-label', `Time to answer in the last second. ${slow}.`);
    say(at('speed-window'), `last ${text(duration(Math.round(spanOf(ticks)) * 1000))}, a point a second`);
    this.legends();
  }

  remake(): void {
    this.calls.remake();
    this.latency.remake();
  }

  private legends(): void {
    const tick = this.pointed === null ? this.shown.findLast((tick) => tick !== null) : this.shown[this.pointed];
    const reads = tick?.reads;
    fill(
      'calls-legend',
      [reads?.memory, reads?.redis, reads?.database, reads?.failed].map((value) =>
        value === undefined ? '–' : rate(value),
      ),
    );
    fill(
      'latency-legend',
      LATENCIES.map(({ of }) => text(duration((tick && of(tick)) ?? null))),
    );
  }
}

function latencyOptions(style: Style): Omit<uPlot.Options, 'width' | 'height'> {
  return {
    cursor,
    scales: { x: { time: false }, y: { distr: 3, range: (_, min, max) => decades(min, max) } },
    axes: [
      times(style),
      style.axis({
        size: 58,
        space: 30,
        grid: { stroke: style.colour('--grid'), width: 1, filter: onlyDecades },
        values: (_, values) =>
          values.map((value) => (value === null || !isDecade(value) ? null : text(duration(value)))) as string[],
      }),
    ],
    series: [
      {},
      ...LATENCIES.map(({ colour }) => ({
        stroke: style.colour(colour),
        width: 1.75,
        spanGaps: false,
        points: { show: true, size: 3, fill: style.colour(colour) },
      })),
    ],
  };
}

function onlyDecades(_: uPlot, splits: number[]): (number | null)[] {
  return splits.map((value) => (isDecade(value) ? value : null));
}

function isDecade(value: number): boolean {
  const log = Math.log10(value);
  return Math.abs(log - Math.round(log)) < 1e-6;
}

/** Whole powers of ten around the values, two at least. */
function decades(min: number | null, max: number | null): [number, number] {
  if (!min || !max || min <= 0) return [0.01, 100];
  const low = Math.floor(Math.log10(min));
  const high = Math.max(low + 2, Math.ceil(Math.log10(max)));
  return [10 ** low, 10 ** high];
}

/** The ticks with nothing put where a second or more is missing, so that no line is drawn across what is not known. */
function withGaps(ticks: readonly Tick[]): (Tick | null)[] {
  const shown: (Tick | null)[] = [];
  let before = ticks[0]?.at_ms ?? 0;
  for (const tick of ticks) {
    if (tick.at_ms - before > 3_500) shown.push(null);
    shown.push(tick);
    before = tick.at_ms;
  }
  return shown;
}

export function legend(id: string, lines: readonly Line[]): void {
  at(id).replaceChildren(...legendItems(lines));
}

export function legendItems(lines: readonly Line[]): HTMLElement[] {
  return lines.map(({ name, colour }) =>
    h('li', {}, h('i', { class: `swatch ${colour.slice(2)}`, 'aria-hidden': 'true' }), `${name} `, h('b')),
  );
}

function fill(id: string, values: string[]): void {
  at(id)
    .querySelectorAll('b')
    .forEach((element, index) => say(element, values[index] ?? '–'));
}
