// Each query and statement: how often, how well, how fast, and from where. Whoever looks for what is wrong asks first of which query.
import { at, h, redraw, say } from './dom';
import { count, duration, share, text } from './format';
import type { Named, QueryFigures, StatementFigures, Status } from './wire';

const HEADS = [
  '',
  'Calls',
  'Failed',
  'p50',
  'p99',
  'Memory',
  'Redis',
  'Database',
  'Stale',
  'Calls since the start',
  'Failed since the start',
];

export function drawUsage(status: Status | null): void {
  if (!status) return;
  const { queries, statements } = status;
  redraw(at('usage-head'), 'head', () => [h('tr', {}, ...HEADS.map((name) => h('th', { scope: 'col' }, name)))]);
  redraw(at('usage-rows'), JSON.stringify([queries, statements]), () => [
    ...queries.map((query) => row(query, sources(query.last_minute))),
    ...statements.map((statement) => row(statement, ['', '', '', ''])),
  ]);
  const empty = at('usage-empty');
  empty.hidden = queries.length + statements.length > 0;
  say(empty, 'No query and no statement is configured.');
  const longest = Math.max(0, ...[...queries, ...statements].map(({ last_minute }) => last_minute.window_ms));
  say(
    at('queries-window'),
    longest > 0 ? `last ${text(duration(Math.round(longest / 1000) * 1000))}, and calls since the start` : '',
  );
}

function row(
  { name, since_start: all, last_minute: now }: Named<QueryFigures | StatementFigures>,
  from: string[],
): HTMLElement {
  const failed = (of: { failed: number }) => h('td', { class: of.failed > 0 ? 'bad' : null }, count(of.failed));
  return h(
    'tr',
    {},
    h('th', { scope: 'row' }, h('code', {}, name), ' ', h('small', {}, 'done' in now ? 'writes' : '')),
    h('td', {}, count(now.calls)),
    failed(now),
    h('td', {}, text(duration(now.p50_ms))),
    h('td', {}, text(duration(now.p99_ms))),
    ...from.map((value) => h('td', {}, value)),
    h('td', {}, count(all.calls)),
    failed(all),
  );
}

/** Shares of the answers of one query by source, and how many of them were stale. */
function sources({ memory, redis, database, stale }: QueryFigures): string[] {
  const answered = memory + redis + database;
  const part = (reads: number) => (answered > 0 ? text(share(reads / answered)) : '–');
  return [part(memory), part(redis), part(database), count(stale)];
}
