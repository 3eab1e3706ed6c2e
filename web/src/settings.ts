// The configuration in force, section by section, as it would stand in the file.
import { json, why } from './api';
import { at, h, redraw } from './dom';

type Table = Record<string, unknown>;

const ORDER = [
  'redis',
  'database',
  'cache',
  'ttl',
  'queries',
  'statements',
  'server',
  'limits',
  'auth',
  'drill',
  'log',
  'metrics',
  'tracing',
];

export async function loadSettings(): Promise<void> {
  const body = at('settings-body');
  try {
    const settings = await json<Table>('/v1/settings');
    redraw(body, JSON.stringify(settings), () => {
      const names = Object.keys(settings).filter((name) => isTable(settings[name]));
      names.sort((a, b) => place(a) - place(b));
      return names.map((name) => section(name, settings[name] as Table));
    });
  } catch (error) {
    if (body.dataset.key === undefined)
      body.replaceChildren(h('p', { class: 'empty' }, `The settings cannot be shown: ${why(error)}.`));
  }
}

function place(name: string): number {
  const index = ORDER.indexOf(name);
  return index < 0 ? ORDER.length : index;
}

function section(name: string, table: Table): HTMLElement {
  const rows = flat('', table);
  return h(
    'details',
    { class: 'card' },
    h('summary', {}, h('code', {}, `[${name}]`), h('span', { class: 'soft' }, summary(name, table, rows.length))),
    h(
      'dl',
      { class: 'facts' },
      ...rows.map(([key, value]) => h('div', {}, h('dt', {}, h('code', {}, key)), h('dd', {}, h('code', {}, value)))),
    ),
  );
}

function summary(name: string, table: Table, rows: number): string {
  if (name === 'queries' || name === 'statements' || name === 'ttl') return Object.keys(table).join(', ');
  for (const key of ['url', 'listen', 'memory_bytes', 'level'])
    if (typeof table[key] === 'string') return String(table[key]);
  return `${rows} setting${rows === 1 ? '' : 's'}`;
}

function flat(before: string, table: Table): [string, string][] {
  return Object.entries(table).flatMap(([name, value]): [string, string][] => {
    const key = before ? `${before}.${name}` : name;
    if (isTable(value)) return flat(key, value);
    return [[key, typeof value === 'string' ? value.trim().replace(/\s+/g, ' ') : JSON.stringify(value)]];
  });
}

function isTable(value: unknown): value is Table {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
