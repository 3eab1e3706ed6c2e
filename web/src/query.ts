// Asking the service as an application would: once to see an answer, or many times to see where answers come from while something
// is broken. It asks this service itself, so the charts above show it.
import { exact, json, Refusal, why } from './api';
import { announce, at, h, icon, redraw, say } from './dom';
import { count, duration, share, text } from './format';

interface Parameter {
  name: string;
  required?: boolean;
  description?: string;
  schema?: {
    type?: string;
    default?: unknown;
    minimum?: number;
    maximum?: number;
    minLength?: number;
    maxLength?: number;
  };
}

interface OpenApi {
  paths: Record<string, { get?: { summary?: string; tags?: string[]; parameters?: Parameter[] } }>;
}

interface Answer {
  rows: Record<string, unknown>[];
  source: string;
  stale: boolean;
  age_ms: number;
}

interface Query {
  name: string;
  about: string;
  params: Parameter[];
}

/** Look-ups under way at once in a loop. */
const WIDTH = 4;

export async function loadQueries(): Promise<void> {
  const body = at('try-body');
  try {
    const { paths } = await json<OpenApi>('/openapi.json');
    const queries = Object.entries(paths)
      .filter(([path, item]) => path.startsWith('/v1/queries/') && item.get)
      .map(([path, item]): Query => ({
        name: path.slice('/v1/queries/'.length),
        about: item.get!.summary ?? '',
        params: item.get!.parameters ?? [],
      }))
      .sort(
        (a, b) => Number(b.name.includes('search')) - Number(a.name.includes('search')) || a.name.localeCompare(b.name),
      );
    redraw(body, JSON.stringify(queries), () =>
      queries.length > 0
        ? form(queries)
        : [
            h(
              'p',
              { class: 'empty' },
              'No query is configured. ',
              h('code', {}, '[queries.NAME]'),
              ' in the configuration adds one.',
            ),
          ],
    );
  } catch (error) {
    if (body.dataset.key === undefined)
      body.replaceChildren(h('p', { class: 'empty' }, `The queries cannot be listed: ${why(error)}.`));
  }
}

function form(queries: Query[]): HTMLElement[] {
  const select = h('select', { id: 'try-query' }, ...queries.map(({ name }) => h('option', { value: name }, name)));
  const fields = h('div', { class: 'fields' });
  const about = h('p', { class: 'soft' });
  const result = h('div', { id: 'try-result' });
  const times = h('input', { type: 'number', id: 'try-times', min: 1, max: 100000, value: 500, inputmode: 'numeric' });
  const query = () => queries.find(({ name }) => name === select.value)!;
  const choose = () => {
    say(about, query().about);
    fields.replaceChildren(...query().params.map((param) => field(param)));
    result.replaceChildren();
  };
  const path = () => {
    const parameters = new URLSearchParams();
    for (const input of fields.querySelectorAll('input'))
      if (input.value !== '') parameters.set(input.name, input.value);
    return `/v1/queries/${query().name}?${parameters}`;
  };
  const loop = h('button', { type: 'button', id: 'try-loop' }, icon('play'), 'Ask again and again');
  let stop: AbortController | null = null;
  loop.addEventListener('click', () => {
    if (stop) {
      stop.abort();
      return;
    }
    stop = new AbortController();
    loop.lastChild!.textContent = 'Stop';
    void many(path(), Number(times.value) || 1, result, stop.signal).finally(() => {
      stop = null;
      loop.lastChild!.textContent = 'Ask again and again';
    });
  });
  select.addEventListener('change', choose);
  const element = h(
    'form',
    {
      class: 'try',
      submit: (event) => {
        event.preventDefault();
        void once(path(), result);
      },
    },
    h('div', { class: 'fields' }, h('label', {}, 'Query', select)),
    fields,
    h(
      'div',
      { class: 'asks' },
      h('button', { type: 'submit', class: 'main', id: 'try-once' }, 'Ask once'),
      h('label', { class: 'times' }, times, ' times'),
      loop,
    ),
  );
  choose();
  return [about, element, result];
}

function field(param: Parameter): HTMLElement {
  const { type, default: preset, minimum, maximum, minLength, maxLength } = param.schema ?? {};
  const whole = type === 'integer';
  const small = (value: number | undefined) =>
    value !== undefined && Math.abs(value) <= Number.MAX_SAFE_INTEGER ? value : null;
  return h(
    'label',
    {},
    param.name,
    h('input', {
      name: param.name,
      type: whole ? 'number' : 'text',
      required: param.required ?? false,
      min: small(minimum),
      max: small(maximum),
      minlength: minLength,
      maxlength: maxLength,
      value: preset !== undefined && preset !== null ? String(preset) : param.required ? (whole ? '1' : 'ada') : null,
      title: param.description,
      autocomplete: 'off',
    }),
  );
}

async function once(path: string, result: HTMLElement): Promise<void> {
  const started = performance.now();
  try {
    const answer = await exact<Answer>(path);
    const took = performance.now() - started;
    const from = h(
      'p',
      { class: 'answer' },
      h('i', { class: `swatch ${answer.source}`, 'aria-hidden': 'true' }),
      h(
        'span',
        {},
        'From ',
        h('b', {}, answer.source),
        `, ${answer.stale ? 'stale, ' : ''}${text(duration(Math.max(0, answer.age_ms)))} old, ${text(duration(took))} for this browser, ${count(answer.rows.length)} rows`,
      ),
    );
    result.replaceChildren(
      from,
      answer.rows.length > 0 ? table(answer.rows) : h('p', { class: 'empty' }, 'Nothing matches.'),
    );
    announce(from.textContent);
  } catch (error) {
    const words = `No answer: ${why(error)}.`;
    result.replaceChildren(h('p', { class: 'problem' }, words));
    announce(words);
  }
}

function table(rows: Record<string, unknown>[]): HTMLElement {
  const first = rows[0]!;
  const names = Object.keys(first).sort((a, b) => rank(a) - rank(b));
  return h(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Rows' },
    h(
      'table',
      {},
      h('thead', {}, h('tr', {}, ...names.map((name) => h('th', { scope: 'col' }, name)))),
      h(
        'tbody',
        {},
        ...rows.slice(0, 10).map((row) => h('tr', {}, ...names.map((name) => h('td', {}, shown(row[name]))))),
      ),
    ),
  );
}

function shown(value: unknown): string {
  if (value === null) return '–';
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

function rank(name: string): number {
  const index = ['id', 'name'].indexOf(name);
  return index < 0 ? 9 : index;
}

async function many(path: string, times: number, result: HTMLElement, stop: AbortSignal): Promise<void> {
  const sources: Record<string, number> = { memory: 0, redis: 0, database: 0, failed: 0 };
  const bar = h('div', { class: 'mix' }, ...Object.keys(sources).map((name) => h('i', { class: name })));
  const words = h('p', { class: 'answer' });
  const meter = h('progress', { max: times, value: 0, 'aria-label': 'Look-ups done' });
  const problem = h('p', { class: 'problem' });
  result.replaceChildren(meter, words, bar, problem);
  let begun = 0;
  let done = 0;
  const ask = async () => {
    while (begun < times && !stop.aborted) {
      begun += 1;
      try {
        const { source } = await json<Answer>(path);
        sources[source] = (sources[source] ?? 0) + 1;
      } catch (error) {
        sources.failed! += 1;
        say(problem, `Last failure: ${why(error)}.`);
        // A wrong question gets no better by repetition; a service that is away may come back.
        if (error instanceof Refusal && error.status >= 400 && error.status < 500 && error.status !== 429) return;
        await new Promise((resolve) => setTimeout(resolve, 250));
      }
      done += 1;
      meter.value = done;
      say(
        words,
        `${count(done)} of ${count(times)}: ${Object.entries(sources)
          .map(([name, reads]) => `${name} ${count(reads)} (${text(share(reads / done))})`)
          .join(', ')}`,
      );
      Object.values(sources).forEach(
        (reads, index) => ((bar.children[index] as HTMLElement).style.flexGrow = String(reads / done)),
      );
    }
  };
  await Promise.all(Array.from({ length: WIDTH }, ask));
  result.dataset.done = String(done);
  announce(`${count(done)} asked, ${count(sources.failed!)} failed.`);
}
