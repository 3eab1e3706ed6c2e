// A chart, and what all of them share.
import uPlot from '../vendor/uplot/uPlot.js';
import { rate } from './format';
import { at, h } from './dom';

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

export type Column = (number | null)[];

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
    /** Draws beneath the curves. */
    private readonly beneath: (plot: uPlot, style: Style) => void = () => {},
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
    const now = style();
    const options: uPlot.Options = {
      ...this.size(),
      ...this.options(now),
      legend: { show: false },
      hooks: {
        setCursor: [(plot: uPlot) => this.pointed(plot.cursor.idx ?? null)],
        drawClear: [(plot: uPlot) => this.beneath(plot, now)],
      },
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

export function legend(id: string, lines: readonly Line[]): void {
  at(id).replaceChildren(...legendItems(lines));
}

export function legendItems(lines: readonly Line[]): HTMLElement[] {
  return lines.map(({ name, colour }) =>
    h('li', {}, h('i', { class: `swatch ${colour.slice(2)}`, 'aria-hidden': 'true' }), `${name} `, h('b')),
  );
}
