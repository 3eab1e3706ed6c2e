// The two large charts: second by second for five minutes, or minute by minute for as long as a day, and what went wrong behind both.
import uPlot from '../vendor/uplot/uPlot.js';
import { json, why } from './api';
import { at, h, say } from './dom';
import {
  Chart,
  cursor,
  type Column,
  legendItems,
  type Line,
  SOURCES,
  stack,
  stackedOptions,
  type Style,
} from './charts';
import { clock, dated, duration, rate, text } from './format';
import { type Band, bands, bandsInWords, type Incident } from './incidents';
import { type Noted, spanOf, type Store, sum, type Sum } from './store';
import { chartSummary } from './words';
import type { Minute, Reads } from './wire';

/** What is drawn of one second, or of one minute. */
interface Point {
  at_ms: number;
  seconds?: number;
  reads: Reads;
  p50_ms: number | null;
  p99_ms: number | null;
  p999_ms: number | null;
}

const LATENCIES: (Line & { of: (point: Point) => number | null })[] = [
  { name: 'median', colour: '--p50', of: (point) => point.p50_ms },
  { name: 'p99', colour: '--p99', of: (point) => point.p99_ms },
  { name: 'p99.9', colour: '--p999', of: (point) => point.p999_ms },
];

/** Spans to choose from, in seconds; the first is the live one. */
const SPANS: [number, string][] = [
  [0, '5 min'],
  [3_600, '1 h'],
  [21_600, '6 h'],
  [86_400, '24 h'],
];

const MINUTES_EVERY_MS = 20_000;

export class Timeline {
  private readonly calls: Chart;
  private readonly latency: Chart;
  private shown: (Point | null)[] = [];
  private behind: Band[] = [];
  private pointed: number | null = null;
  /** Seconds shown; 0 is live. */
  private span = 0;
  /** Until when, in seconds; `null` is now. */
  private end: number | null = null;
  private minutes: Minute[] = [];
  private minutesAt = 0;
  private problem = '';

  /** `changed` is called when something else is to be drawn. */
  constructor(private readonly changed: () => void) {
    const point = (index: number | null) => {
      this.pointed = index;
      this.legends();
    };
    const beneath = (plot: uPlot, style: Style) => drawBands(plot, style, this.behind);
    this.calls = new Chart(at('calls-chart'), stackedOptions(SOURCES, times), point, 210, beneath);
    this.latency = new Chart(at('latency-chart'), latencyOptions, point, 210, beneath);
    at('calls-legend').replaceChildren(...legendItems(SOURCES));
    at('latency-legend').replaceChildren(...legendItems(LATENCIES));
    at('spans').replaceChildren(
      ...SPANS.map(([span, name]) =>
        h('button', { type: 'button', 'data-span': span, click: () => this.show(span) }, name),
      ),
    );
    at('earlier').addEventListener('click', () => this.shift(-0.5));
    at('later').addEventListener('click', () => this.shift(0.5));
    this.buttons();
  }

  /** Shows so many seconds until `end`, or until now. */
  show(span: number, end: number | null = null): void {
    this.span = span;
    this.end = span === 0 ? null : end;
    this.pointed = null;
    this.buttons();
    this.ask(true);
    this.changed();
  }

  /** Shows an incident with what was before and after it. */
  bring(incident: Incident, now: number): void {
    const until = incident.until ?? now;
    const wanted = ((until - incident.since) / 1000) * 3;
    const span = SPANS.find(([seconds]) => seconds >= Math.max(3_600, wanted))?.[0] ?? 86_400;
    const middle = (incident.since + until) / 2000;
    const end = middle + span / 2;
    this.show(span, end < now / 1000 ? end : null);
  }

  private shift(part: number): void {
    if (this.span === 0) return this.show(SPANS[1]![0]);
    const now = Date.now() / 1000;
    const end = (this.end ?? now) + part * this.span;
    const oldest = (this.minutes[0]?.at_ms ?? now * 1000) / 1000;
    this.show(this.span, end >= now ? null : Math.max(end, oldest + this.span / 2));
  }

  private buttons(): void {
    for (const button of at('spans').querySelectorAll('button')) {
      button.setAttribute('aria-pressed', String(Number(button.dataset.span) === this.span));
    }
    at<HTMLButtonElement>('later').disabled = this.end === null;
  }

  /** Asks for the minutes, if they are shown and those that are here have grown old. */
  private ask(atOnce = false): void {
    if (this.span === 0 || (!atOnce && Date.now() - this.minutesAt < MINUTES_EVERY_MS)) return;
    this.minutesAt = Date.now();
    json<{ minutes: Minute[] }>('/v1/minutes')
      .then(({ minutes }) => {
        this.minutes = minutes;
        this.problem = '';
      })
      .catch((error: unknown) => (this.problem = why(error)))
      .finally(this.changed);
  }

  draw(store: Store, found: readonly Incident[]): void {
    const live = this.span === 0;
    if (!live && store.link.state === 'live') this.ask();
    const all: readonly Point[] = live ? [...store.past, ...store.ticks] : this.minutes;
    const newest = live ? store.tick?.at_ms : store.now();
    if (!newest) return;
    const ticks = live ? [...store.past, ...store.ticks] : [];
    const end = this.end ?? newest / 1000;
    const range: [number, number] = [end - (live ? spanOf(ticks) : this.span), end];
    const points = all.filter((point) => point.at_ms / 1000 >= range[0] - 60 && point.at_ms / 1000 <= range[1]);
    this.shown = withGaps(points, live ? 3_500 : 90_000);
    this.behind = bands(found, store.events as Noted[], range[0] * 1000, range[1] * 1000);
    let last = range[0] - 60;
    const xs = this.shown.map((point) => (last = point ? point.at_ms / 1000 : last + (live ? 1 : 60)));
    const reads = (name: 'memory' | 'redis' | 'database' | 'failed'): Column =>
      this.shown.map((point) => point && point.reads[name] / (point.seconds || 1));
    const columns = stack([reads('memory'), reads('redis'), reads('database'), reads('failed')]);
    this.calls.draw([xs, ...columns] as uPlot.AlignedData, range);
    const lines = LATENCIES.map(({ of }) => this.shown.map((point) => point && of(point)));
    this.latency.draw([xs, ...lines] as uPlot.AlignedData, range);
    this.describe(points, range, live);
    this.legends();
  }

  remake(): void {
    this.calls.remake();
    this.latency.remake();
  }

  private describe(points: readonly Point[], range: [number, number], live: boolean): void {
    const over = this.end === null ? `the last ${text(duration((range[1] - range[0]) * 1000))}` : 'the time shown';
    const happened = bandsInWords(this.behind);
    const total: Sum = sum(points);
    at('calls-chart').setAttribute(
      'aria-label',
      `${chartSummary(total, over)}${happened ? ` Within it: ${happened}.` : ''}`,
    );
    const worst = Math.max(0, ...points.map((point) => point.p99_ms ?? 0));
    const slow =
      worst > 0 ? `the greatest p99 of a ${live ? 'second' : 'minute'} was ${text(duration(worst))}` : 'no calls';
    at('latency-chart').setAttribute('aria-label', `Time to answer in ${over}: ${slow}.`);
    const when = this.end === null ? over : `${dated(range[0] * 1000)} to ${clock(range[1] * 1000)}`;
    const problem = this.problem && !live ? `; not up to date: ${this.problem}` : '';
    say(at('speed-window'), `${when}, a point a ${live ? 'second' : 'minute'}${problem}`);
    const shown = new Set(this.behind.map(({ kind }) => kind));
    for (const item of at('bands').querySelectorAll<HTMLElement>('[data-band]')) {
      item.dataset.shown = String(shown.has(item.dataset.band as Band['kind']));
    }
    say(
      at('bands-words'),
      happened ? `Behind the curves: ${happened}.` : 'No outage, start, reload or drill in this time.',
    );
  }

  private legends(): void {
    const point = this.pointed === null ? this.shown.findLast((one) => one !== null) : this.shown[this.pointed];
    const per = point?.seconds || 1;
    const { memory, redis, database, failed } = point?.reads ?? {};
    const rates = [memory, redis, database, failed].map((value) => (value === undefined ? '–' : rate(value / per)));
    fill('calls-legend', rates);
    fill(
      'latency-legend',
      LATENCIES.map(({ of }) => text(duration(point ? of(point) : null))),
    );
  }
}

function fill(id: string, values: string[]): void {
  at(id)
    .querySelectorAll('b')
    .forEach((element, index) => say(element, values[index] ?? '–'));
}

const BAND_COLOURS: Record<Band['kind'], string> = {
  outage: '--bad',
  database: '--database',
  failing: '--failed',
  drill: '--p99',
  restart: '--ink',
  reload: '--accent',
};

/** Spans as tinted bands with a bar on top, moments as dashed lines: colour alone tells nothing to some. */
function drawBands(plot: uPlot, style: Style, shown: readonly Band[]): void {
  const { ctx, bbox } = plot;
  const x = (ms: number) => Math.min(bbox.left + bbox.width, Math.max(bbox.left, plot.valToPos(ms / 1000, 'x', true)));
  ctx.save();
  for (const { kind, from, to } of shown) {
    ctx.fillStyle = ctx.strokeStyle = style.colour(BAND_COLOURS[kind]);
    const left = x(from);
    if (from === to) {
      ctx.globalAlpha = 0.7;
      ctx.setLineDash(kind === 'restart' ? [6, 4] : [2, 4]);
      ctx.lineWidth = 1.5;
      ctx.beginPath();
      ctx.moveTo(left, bbox.top);
      ctx.lineTo(left, bbox.top + bbox.height);
      ctx.stroke();
      continue;
    }
    const width = Math.max(2, x(to) - left);
    ctx.globalAlpha = 0.13;
    ctx.fillRect(left, bbox.top, width, bbox.height);
    ctx.globalAlpha = 0.9;
    ctx.fillRect(left, bbox.top, width, 4);
  }
  ctx.restore();
}

/** A time axis as a clock without a date. */
function times({ axis }: Style): uPlot.Axis {
  const short = (values: number[]) => (values.every((value) => value % 60 === 0) ? 5 : 8);
  return axis({
    size: 28,
    grid: { show: false },
    space: 70,
    incrs: [15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400],
    values: (plot, values) =>
      values.map((value) => (value < leftmost(plot) ? '' : clock(value * 1000).slice(0, short(values)))),
  });
}

/** Further left a label would run into those of the other axis. */
function leftmost({ scales }: uPlot): number {
  const { min = 0, max = 0 } = scales.x!;
  return min! + (max! - min!) * 0.05;
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

/** The points with nothing put where one or more are missing, so that no line is drawn across what is not known. */
function withGaps(points: readonly Point[], longest: number): (Point | null)[] {
  const shown: (Point | null)[] = [];
  let before = points[0]?.at_ms ?? 0;
  for (const point of points) {
    if (point.at_ms - before > longest) shown.push(null);
    shown.push(point);
    before = point.at_ms;
  }
  return shown;
}
