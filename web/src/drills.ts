// Drills: choose one, watch it beside the same without resilience, stop it, and read at the end what callers would have felt.
import { hasToken, json, post, request, why } from './api';
import type { Chart } from './charts';
import { announce, at, h, icon, redraw, say } from './dom';
import { clock, duration, text } from './format';
import { pill } from './marks';
import { felt, figures, judged } from './report';
import { Scale, Side } from './side';
import { Stream } from './stream';
import { capital, type Mood } from './words';
import type { Drill, Offer, Progress, Report } from './wire';

interface Listing {
  enabled: boolean;
  scenarios: Offer[];
  drills: Drill[];
}

const STEPS: [string, string][] = [
  ['warm_up', 'Warm up'],
  ['baseline', 'As usual'],
  ['fault', 'Broken'],
  ['recovery', 'Recovery'],
  ['recovered', 'Recovered'],
];

let listing: Listing | null = null;
let shown: number | null = null;
let stream: Stream | null = null;
const charts: Chart[] = [];

export function remakeDrillCharts(): void {
  for (const chart of charts) chart.remake();
}

export async function loadDrills(): Promise<void> {
  try {
    listing = await json<Listing>('/v1/drills');
    drawList();
    const running = listing.drills.find((drill) => drill.state === 'running');
    if (running && shown !== running.id) watch(running, false);
  } catch (error) {
    if (!listing)
      redraw(at('drill-list'), 'failed', () => [
        h(
          'p',
          { class: 'card empty' },
          `The drills cannot be listed: ${why(error)}. `,
          h('button', { type: 'button', click: () => void loadDrills() }, 'Ask again'),
        ),
      ]);
  }
}

// Made once: what was chosen stays chosen when the list is drawn anew.
const control = h('input', { type: 'checkbox', id: 'control', checked: true });
const byHand = h('input', { type: 'checkbox', id: 'by-hand', checked: true });
const calls = h('input', {
  type: 'number',
  id: 'loop-calls',
  min: 1,
  max: 200000,
  value: 1000,
  inputmode: 'numeric',
});

function drawList(): void {
  if (!listing) return;
  const { enabled, scenarios, drills } = listing;
  redraw(at('drill-list'), JSON.stringify([enabled, drills.map(({ id, state }) => [id, state])]), () => {
    if (!enabled)
      return [
        h(
          'p',
          { class: 'card empty' },
          'Drills are switched off here. ',
          h('code', {}, '[drill] enabled = true'),
          ' in the configuration switches them on; they break only servers that they start themselves.',
        ),
      ];
    const busy = drills.some((drill) => drill.state === 'running');
    const start = (name: string) => () =>
      void begin({
        scenario: name,
        control: control.checked,
        hand_built: byHand.checked,
        ...(name === 'loop' && { calls: Number(calls.value) }),
      });
    const button = (name: string) =>
      h(
        'button',
        { type: 'button', 'data-drill': name, disabled: busy, 'aria-label': `Run ${human(name)}`, click: start(name) },
        icon('play'),
        'Run',
      );
    return [
      h('p', { class: 'problem', id: 'drill-problem', role: 'alert' }),
      h(
        'div',
        { class: 'controls', role: 'group', 'aria-label': 'What runs beside, under the same load and the same faults' },
        beside(control, 'Beside it, the same without resilience', 'a plain client, which has no way round Redis'),
        beside(byHand, 'and the same built by hand', 'a pool, retries, a breaker, and the database as fallback'),
      ),
      h(
        'ul',
        { class: 'offers' },
        ...scenarios
          .toSorted((a, b) => Number(b.name === 'loop') - Number(a.name === 'loop'))
          .map((offer) =>
            h(
              'li',
              { class: 'offer' },
              h(
                'div',
                {},
                h('h3', {}, human(offer.name), h('small', {}, text(duration(offer.length_ms)))),
                h('p', { class: 'soft' }, offer.about),
                offer.name === 'loop' ? h('label', { class: 'loop', for: 'loop-calls' }, 'Look-ups ', calls) : null,
              ),
              button(offer.name),
            ),
          ),
      ),
      drills.length > 0
        ? h('div', { class: 'runs' }, h('h3', {}, 'Drills so far'), h('ul', {}, ...drills.map(past)))
        : null,
    ];
  });
}

function past(drill: Drill): HTMLElement {
  return h(
    'li',
    {},
    pill(mood(drill.state), verdict(drill.state)),
    h('b', {}, human(drill.scenario)),
    h('span', { class: 'soft' }, clock(drill.started_ms)),
    drill.state === 'running' || drill.id === shown
      ? null
      : h(
          'button',
          {
            type: 'button',
            class: 'quiet',
            'aria-label': `Show ${human(drill.scenario)} of ${clock(drill.started_ms)}`,
            click: () => watch(drill, true),
          },
          'Show',
        ),
  );
}

/** What can run beside a drill. */
function beside(box: HTMLInputElement, name: string, what: string): HTMLElement {
  return h('label', { class: 'control', for: box.id }, box, h('span', {}, h('b', {}, name), ` – ${what}`));
}

interface Order {
  scenario: string;
  control: boolean;
  hand_built: boolean;
  calls?: number;
}

async function begin(order: Order): Promise<void> {
  say(at('drill-problem'), '');
  try {
    const drill = await post<Drill>('/v1/drills', order);
    watch(drill, true);
    await loadDrills();
  } catch (error) {
    say(at('drill-problem'), `It was not started: ${why(error)}.`);
  }
}

/** Shows a drill, running or over. */
function watch(drill: Drill, focus: boolean): void {
  stream?.close();
  shown = drill.id;
  charts.length = 0;
  const stage = new Stage(drill);
  at('drill-stage').replaceChildren(stage.element);
  if (focus) {
    stage.element.focus({ preventScroll: true });
    at('drills').scrollIntoView({ block: 'start' });
  }
  if (drill.state === 'running') {
    announce(`Drill ${human(drill.scenario)} started.`);
    stream = new Stream(
      `/v1/drills/${drill.id}/events`,
      (frame) => {
        if (frame.event === 'tick') stage.progress(JSON.parse(frame.data) as Progress);
        if (frame.event === 'over') {
          stream?.close();
          void stage.over(JSON.parse(frame.data) as Drill);
          void loadDrills();
        }
      },
      (link) => {
        if (link.state === 'lost') void gone(drill.id, stage);
      },
    );
    void stream.run();
  } else {
    void stage.over(drill);
  }
  drawList();
}

/** The stream of a drill ended without a verdict: the service may have restarted and know nothing of it. */
async function gone(id: number, stage: Stage): Promise<void> {
  try {
    const drill = await json<Drill>(`/v1/drills/${id}`);
    if (drill.state !== 'running' && shown === id) {
      stream?.close();
      void stage.over(drill);
    }
  } catch (error) {
    if (error instanceof Error && 'status' in error && error.status === 404 && shown === id) {
      stream?.close();
      stage.vanished();
      void loadDrills();
    }
  }
}

/** What is seen of one drill. */
class Stage {
  readonly element: HTMLElement;
  private readonly bar = h('i');
  private readonly meter = h(
    'div',
    {
      class: 'meter',
      role: 'progressbar',
      'aria-label': 'Progress',
      'aria-valuemin': 0,
      'aria-valuemax': 100,
      'aria-valuenow': 0,
    },
    this.bar,
  );
  private readonly steps = h(
    'ol',
    { class: 'steps' },
    ...STEPS.map(([name, words]) => h('li', { 'data-step': name }, words)),
  );
  private readonly broken = h('p', { class: 'broken soft' }, 'Starting servers of its own…');
  private readonly stop = h(
    'button',
    { type: 'button', id: 'drill-stop', click: () => void this.stopIt() },
    icon('stop'),
    'Stop',
  );
  private readonly badge = h('span', { class: 'badge' });
  private readonly end = h('div', { class: 'end' });
  private readonly subject: Side;
  private readonly control: Side | null;
  private readonly byHand: Side | null;

  constructor(private readonly drill: Drill) {
    const scale = new Scale();
    this.subject = new Side('With Steadfast', scale);
    this.control = drill.control ? new Side('Without resilience', scale) : null;
    this.byHand = drill.hand_built ? new Side('Built by hand', scale) : null;
    const sides = [this.subject, this.control, this.byHand].filter((side) => side !== null);
    charts.push(...sides.map((side) => side.chart));
    const columns = h(
      'div',
      { class: `sides ${['', 'two', 'three'][sides.length - 1]}` },
      ...sides.map((side) => side.element),
    );
    this.badge.append(pill('idle', 'Running'));
    this.element = h(
      'article',
      { class: 'stage card', tabindex: -1, 'aria-labelledby': 'stage-title' },
      h(
        'header',
        {},
        h(
          'div',
          {},
          h('h3', { id: 'stage-title' }, human(drill.scenario), ' ', this.badge),
          h('p', { class: 'soft' }, drill.about),
        ),
        this.stop,
      ),
      h('div', { class: 'course' }, this.steps, this.meter, this.broken),
      this.end,
      columns,
    );
    if (drill.progress) this.progress(drill.progress);
  }

  progress(progress: Progress): void {
    const done = Math.min(100, Math.round((progress.elapsed_ms / progress.total_ms) * 100));
    this.bar.style.width = `${done}%`;
    this.meter.setAttribute('aria-valuenow', String(done));
    const index = STEPS.findIndex(([name]) => name === progress.phase);
    [...this.steps.children].forEach((step, at) => {
      step.className = at < index ? 'done' : at === index ? 'on' : '';
      if (at === index) step.setAttribute('aria-current', 'step');
      else step.removeAttribute('aria-current');
    });
    const left = text(duration(Math.max(0, progress.total_ms - progress.elapsed_ms)));
    const broken = progress.broken.map((name) => name.replaceAll('_', ' ')).join(', ');
    say(this.broken, broken ? `Broken now: ${broken}. ${left} to go.` : `Nothing is broken now. ${left} to go.`);
    this.broken.classList.toggle('bad', broken !== '');
    this.take(progress);
  }

  /** Each side takes its own. */
  private take({ elapsed_ms, total_ms, subject, control, hand_built }: Progress): void {
    this.subject.take(elapsed_ms, total_ms, subject);
    if (control) this.control?.take(elapsed_ms, total_ms, control);
    if (hand_built) this.byHand?.take(elapsed_ms, total_ms, hand_built);
  }

  async over(drill: Drill): Promise<void> {
    this.element.dataset.state = drill.state;
    this.stop.remove();
    this.bar.style.width = '100%';
    this.badge.replaceChildren(pill(mood(drill.state), verdict(drill.state)));
    this.element.querySelector('.course')!.remove();
    announce(`Drill ${human(drill.scenario)}: ${verdict(drill.state)}.`);
    if (drill.progress && !this.subject.hasData) this.take(drill.progress);
    if (drill.state === 'stopped') {
      this.end.append(
        h(
          'p',
          { class: 'outcome' },
          'It was stopped before it came to a verdict. Whatever it had broken is healed, and its servers are gone.',
        ),
      );
      return;
    }
    if (drill.state === 'broken') {
      this.end.append(
        h('p', { class: 'outcome problem' }, `It came to no verdict: ${drill.error ?? 'no cause is known'}.`),
      );
      return;
    }
    try {
      this.show(await json<Report>(`/v1/drills/${drill.id}/report`));
    } catch (error) {
      this.end.append(h('p', { class: 'outcome problem' }, `The report cannot be read: ${why(error)}.`));
    }
  }

  vanished(): void {
    this.element.dataset.state = 'gone';
    this.stop.remove();
    this.badge.replaceChildren(pill('warn', 'Gone'));
    this.end.append(
      h(
        'p',
        { class: 'outcome' },
        'The service was restarted and knows nothing of this drill any more. What the drill had started ended with it.',
      ),
    );
  }

  private async stopIt(): Promise<void> {
    this.stop.disabled = true;
    this.stop.lastChild!.textContent = 'Stopping…';
    try {
      await json(`/v1/drills/${this.drill.id}`, { method: 'DELETE', signal: AbortSignal.timeout(30_000) });
    } catch (error) {
      this.stop.disabled = false;
      this.stop.lastChild!.textContent = 'Stop';
      say(this.broken, `It was not stopped: ${why(error)}.`);
    }
  }

  private show(report: Report): void {
    const { mood, words } = judged(report);
    const address = `/v1/drills/${this.drill.id}/report?format=html`;
    this.end.append(
      h(
        'div',
        { class: `outcome verdict ${mood}` },
        icon(mood),
        h('div', {}, h('b', { id: 'verdict' }, verdict(report.verdict)), h('p', {}, `${words} ${felt(report)}`)),
      ),
      figures(report),
      h(
        'details',
        { class: 'whole', open: true, id: 'whole-report' },
        h('summary', {}, 'The whole report'),
        hasToken()
          ? h(
              'p',
              {},
              h(
                'button',
                { type: 'button', click: () => void save(address, this.drill) },
                icon('open'),
                'Save the report as a file',
              ),
            )
          : h(
              'div',
              {},
              h(
                'p',
                {},
                h(
                  'a',
                  { href: address, target: '_blank', rel: 'noopener' },
                  'Open it in a tab of its own',
                  icon('open'),
                ),
              ),
              h('iframe', {
                src: address,
                title: `Report of the drill ${human(report.scenario)}`,
                loading: 'lazy',
                sandbox: 'allow-scripts',
              }),
            ),
      ),
    );
  }
}

async function save(address: string, drill: Drill): Promise<void> {
  const url = URL.createObjectURL(await (await request(address)).blob());
  h('a', { href: url, download: `steadfast-${drill.scenario}-${drill.id}.html` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function mood(state: Drill['state']): Mood {
  return ({ running: 'idle', passed: 'good', failed: 'bad', void: 'warn', stopped: 'warn', broken: 'bad' } as const)[
    state
  ];
}

function verdict(state: Drill['state']): string {
  return {
    running: 'Running',
    passed: 'Passed',
    failed: 'Failed',
    void: 'Proves nothing',
    stopped: 'Stopped',
    broken: 'No verdict',
  }[state];
}

const NAMES: Record<string, string> = {
  oom: 'Out of memory',
  maxclients: 'Too many clients',
  loading: 'Still loading',
  freeze: 'Frozen',
  loop: 'Loop test',
  'readonly-failover': 'Turned replica',
  'half-open': 'Answers lost',
};

/** "restart-5s" as people say it. */
function human(name: string): string {
  return (
    NAMES[name] ??
    capital(name.replaceAll('-', ' '))
      .replace('redis', 'Redis')
      .replace(/(\d+)(ms|s)\b/, '$1\u00a0$2')
  );
}
