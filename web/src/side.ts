// One of the two under load in a drill: its figures, its state and its chart.
import uPlot from '../vendor/uplot/uPlot.js';
import { Chart, legendItems, SOURCES, stack, stackedOptions, type Style } from './charts';
import { h, redraw, say } from './dom';
import { count, rate } from './format';
import { pill } from './marks';
import { breakerName, redisName } from './words';
import type { Live } from './wire';

/** The top of both charts: side by side, they must be on one scale. */
export class Scale {
  private most = 0;

  readonly top = (most: number): number => (this.most = Math.max(this.most, most));
}

/** One of the two under load. */
export class Side {
  readonly element: HTMLElement;
  readonly chart: Chart;
  hasData = false;
  private before: Live | null = null;
  private readonly figures = ['Answered', 'Failed', 'A second', 'Wrong'].map((name) => ({
    name,
    value: h('dd', {}, '–'),
  }));
  private readonly state = h('p', { class: 'side-state' });
  private readonly plot = h('div', { class: 'plot', role: 'img', 'aria-label': 'Calls a second by source' });
  private readonly xs: number[] = [];
  private readonly columns: number[][] = [[], [], [], []];

  constructor(title: string, scale: Scale) {
    this.chart = new Chart(this.plot, stackedOptions(SOURCES, seconds, scale.top), undefined, 150);
    this.element = h(
      'section',
      { class: 'side', 'aria-label': title },
      h('div', { class: 'side-head' }, h('h4', {}, title), this.state),
      h(
        'dl',
        { class: 'side-figures' },
        ...this.figures.map(({ name, value }) => h('div', {}, h('dt', {}, name), value)),
      ),
      h('ul', { class: 'legend plain' }, ...legendItems(SOURCES)),
      this.plot,
    );
  }

  take(elapsed: number, total: number, live: Live): void {
    this.hasData = true;
    const values = [
      count(live.calls - live.failed),
      count(live.failed + live.skipped),
      rate(live.rate),
      count(live.wrong),
    ];
    this.figures.forEach(({ value }, index) => say(value, values[index]!));
    this.figures[1]!.value.classList.toggle('bad', live.failed + live.skipped > 0);
    this.figures[3]!.value.classList.toggle('bad', live.wrong > 0);
    const connected = live.connection === 'ready';
    redraw(this.state, `${live.connection}${live.breaker}`, () => [
      pill(connected ? 'good' : 'bad', redisName(live.connection)),
      live.breaker === 'closed' ? null : pill('warn', `breaker ${breakerName(live.breaker)}`),
    ]);
    const { before } = this;
    const last = this.xs.at(-1) ?? 0;
    if (before && elapsed / 1000 > last) {
      const span = elapsed / 1000 - last || 1;
      const since = [
        live.memory - before.memory,
        live.redis - before.redis,
        live.database - before.database,
        live.failed + live.skipped - before.failed - before.skipped,
      ];
      since.forEach((calls, index) => this.columns[index]!.push(Math.max(0, calls) / span));
      this.xs.push(elapsed / 1000);
      this.chart.draw([this.xs, ...stack(this.columns)] as uPlot.AlignedData, [0, total / 1000]);
      this.plot.setAttribute(
        'aria-label',
        `${count(live.calls)} calls so far: memory ${count(live.memory)}, Redis ${count(live.redis)}, database ${count(live.database)}, failed ${count(live.failed)}`,
      );
    } else if (!before) {
      this.xs.push(elapsed / 1000);
      for (const column of this.columns) column.push(0);
    }
    this.before = live;
  }
}

function seconds({ axis }: Style): uPlot.Axis {
  return axis({
    size: 28,
    grid: { show: false },
    space: 60,
    values: (_, values) => values.map((value) => `${value}\u202fs`),
  });
}
