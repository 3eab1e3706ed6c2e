// The figures of a drill that is over, beside those of the control. A tick says only what it can: a call that failed at once was not fast.
import { h, icon } from './dom';
import { count, duration, share, text } from './format';
import { capital } from './words';
import type { Kpi, Report } from './wire';

const NAMES: Record<string, string> = {
  connection_success: 'Redis calls answered',
  fallback: 'Fallback to the database',
  users_well: 'Users well again within',
  redis_in_use: 'Redis in use again within',
  untouched: 'Faults that touched nothing',
  hit_rate: 'Hits',
  errors: 'Reads failed',
  write_errors: 'Writes failed',
  wrong_answers: 'Wrong answers',
  stale_answers: 'Stale answers',
  fault_p99: '99 of 100 calls within',
  slowest_call: 'Slowest call',
};

export function figureName(name: string): string {
  return NAMES[name] ?? capital(name.replaceAll('_', ' '));
}

const PHASES: Record<string, string> = {
  baseline: 'before the fault',
  fault: 'while broken',
  recovery: 'after healing',
  recovered: 'once recovered',
};

/** The phases a figure is taken from, as people say it. */
export function phase(names: string): string {
  const said = names.split(', ').map((name) => PHASES[name] ?? name);
  return said.join(' and ');
}

function value(kpi: Kpi, number: unknown): string {
  if (typeof number !== 'number') return '–';
  if (kpi.unit === 'ratio') return text(share(number));
  return kpi.unit === 'ms' ? text(duration(number)) : count(number);
}

const BOUNDS: Record<string, string> = { above: 'over', below: 'under', at_most: 'at most', at_least: 'at least' };

function target(kpi: Kpi): string {
  return `${BOUNDS[kpi.bound ?? ''] ?? ''} ${value(kpi, kpi.target)}`.trim();
}

/** Times of calls, of which those that failed at once are the shortest. */
const TIMES = new Set(['fault_p99', 'slowest_call']);

/** What stands in a cell, and whether it is good, bad, or neither because the figure says too little. */
export function cell(report: Report, kpi: Kpi): { mood: 'good' | 'bad' | 'idle'; words: string } {
  const shown = value(kpi, kpi.value);
  if (!kpi.pass) return { mood: 'bad', words: shown };
  if (!TIMES.has(kpi.name)) return { mood: 'good', words: shown };
  const { failed, calls } = ended(report, kpi.name === 'fault_p99' ? ['fault'] : null);
  if (calls > 0 && failed / calls >= 0.5) return { mood: 'bad', words: 'failed at once' };
  const errors = report.kpis.find(({ name }) => name === 'errors');
  // It holds, of calls of which too many failed: no praise for that.
  return { mood: errors && !errors.pass ? 'idle' : 'good', words: shown };
}

/** Calls of some phases, or of all, and how many of them failed or could not start. */
function ended(report: Report, phases: string[] | null): { calls: number; failed: number } {
  let calls = 0;
  let failed = 0;
  for (const of of report.phases) {
    if (phases && !phases.includes(of.name)) continue;
    calls += of.calls;
    failed += of.skipped + Object.values(of.errors).reduce((sum, errors) => sum + errors, 0);
  }
  return { calls, failed };
}

/** The verdict in a sentence. Nothing is proven by a fault that touched nothing, whatever the other figures are. */
export function judged(report: Report): { mood: 'good' | 'warn' | 'bad'; words: string } {
  if (report.verdict === 'passed') return { mood: 'good', words: 'Every figure is within its target.' };
  if (report.verdict === 'void')
    return { mood: 'warn', words: 'Nothing was broken, or what was broken touched nothing, so nothing was shown.' };
  const missed = report.kpis.filter((kpi) => !kpi.pass).map((kpi) => figureName(kpi.name));
  return { mood: 'bad', words: `${missed.join(', ')}: outside the target.` };
}

export function figures(report: Report): HTMLElement {
  const { control, hand_built } = report;
  const sides = [report, control, hand_built].filter((side) => side !== null);
  const heads = [
    'Key figure',
    'Target',
    'With Steadfast',
    ...(control ? ['Without resilience'] : []),
    ...(hand_built ? ['Built by hand'] : []),
  ];
  return h(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Key figures' },
    h(
      'table',
      { class: 'kpis' },
      h('thead', {}, h('tr', {}, ...heads.map((head) => h('th', { scope: 'col' }, head)))),
      h('tbody', {}, whileBroken(sides), ...report.kpis.map((kpi) => row(kpi, sides))),
    ),
  );
}

/** What the fault itself did, for which there is no target. */
function whileBroken(sides: Report[]): HTMLElement | null {
  const felt = sides.map((side) => ended(side, ['fault']));
  if (felt.every(({ calls }) => calls === 0)) return null;
  return h(
    'tr',
    {},
    h('th', { scope: 'row' }, 'Calls failed', h('small', { class: 'phase' }, phase('fault'))),
    h('td', { class: 'soft' }, 'none is set'),
    ...felt.map(({ calls, failed }) => h('td', {}, calls > 0 ? text(share(failed / calls)) : '–')),
  );
}

/** What a figure is held to, and what that of those beside it is, where it is another. */
export function targets(kpi: Kpi, sides: readonly Report[]): string {
  const others = sides.flatMap((side) => side.kpis.filter(({ name }) => name === kpi.name));
  const other = others.find((theirs) => theirs.target !== kpi.target);
  return other ? `${target(kpi)} (those beside: ${target(other)})` : target(kpi);
}

function row(kpi: Kpi, sides: Report[]): HTMLElement {
  const held = targets(kpi, sides);
  return h(
    'tr',
    {},
    h(
      'th',
      { scope: 'row' },
      figureName(kpi.name),
      h('small', { class: 'phase' }, phase(kpi.phase)),
      h('small', { class: 'target' }, held),
    ),
    h('td', { class: 'soft' }, held),
    ...sides.map((side) => {
      const of = side.kpis.find(({ name }) => name === kpi.name);
      if (!of) return h('td', {}, '–');
      const { mood, words } = cell(side, of);
      const said = { good: 'met: ', bad: 'missed: ', idle: '' }[mood];
      return h(
        'td',
        { class: mood === 'bad' ? 'bad' : null },
        mood === 'idle' ? null : icon(mood, mood),
        h('span', { class: 'unseen' }, said),
        words,
      );
    }),
  );
}

/** In one sentence, how many calls failed on either side. */
export function felt(report: Report): string {
  const { calls, failed } = ended(report, null);
  const beside = report.control ? ` Without resilience ${count(ended(report.control, null).failed)} did.` : '';
  const byHand = report.hand_built ? ` Built by hand ${count(ended(report.hand_built, null).failed)} did.` : '';
  return `Of ${count(calls)} calls, ${count(failed)} failed.${beside}${byHand}`;
}
