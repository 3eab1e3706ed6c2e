// The interface as the service describes it, to be read and tried. All text of the description enters the page as text, never
// as markup, and nothing but this service is asked.
'use strict';

const KEY = 'steadfast-token';
const METHODS = ['get', 'post', 'delete'];
const PATIENCE_MS = 15_000;

/** An element with attributes and children; strings become text. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function token() {
  try {
    return sessionStorage.getItem(KEY) ?? '';
  } catch {
    return '';
  }
}

function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token()) headers.authorization = `Bearer ${token()}`;
  return fetch(path, { ...options, headers, signal: AbortSignal.timeout(PATIENCE_MS) });
}

/** A schema with its reference followed. */
function resolved(api, schema) {
  let found = schema ?? {};
  for (let hops = 0; found.$ref && hops < 8; hops += 1) {
    found =
      found.$ref
        .slice(2)
        .split('/')
        .reduce((at, part) => at?.[part], api) ?? {};
  }
  return found;
}

/** What a value must be, in words. */
function inWords(schema) {
  const words = [[].concat(schema.type ?? 'anything').join(' or ')];
  if (schema.format) words.push(schema.format);
  if (schema.enum) words.push(`one of ${schema.enum.join(', ')}`);
  if (schema.minimum !== undefined) words.push(`at least ${schema.minimum}`);
  if (schema.maximum !== undefined) words.push(`at most ${schema.maximum}`);
  if (schema.minLength !== undefined) words.push(`from ${schema.minLength} characters`);
  if (schema.maxLength !== undefined) words.push(`up to ${schema.maxLength} characters`);
  if (schema.default !== undefined) words.push(`default ${JSON.stringify(schema.default)}`);
  return words.join(', ');
}

function table(heads, rows) {
  const head = make('tr', {}, ...heads.map((text) => make('th', { scope: 'col' }, text)));
  const body = rows.map((cells) => make('tr', {}, ...cells.map((cell) => make('td', {}, cell))));
  return make('div', { class: 'scroll' }, make('table', {}, make('thead', {}, head), make('tbody', {}, ...body)));
}

function fields(schema) {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, field]) => [
    make('code', {}, name),
    `${inWords(field)}${required.has(name) ? '' : ', may be left out'}`,
    field.description ?? '',
  ]);
}

/** A body to begin with: what is required, and what has a default. */
function example(schema) {
  const body = {};
  const required = schema.required ?? [];
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    if (!required.includes(name)) continue;
    const type = [].concat(field.type ?? 'string')[0];
    body[name] = field.default ?? { integer: field.minimum ?? 0, number: 0, boolean: false }[type] ?? '';
  }
  return JSON.stringify(body, null, 2);
}

/** JSON in lines. Numbers pass as marked texts, so that none is rounded on the way. */
function indented(text) {
  const marked = text.replace(/"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g, (token) =>
    token.startsWith('"') ? token : `"\\u0000${token}"`,
  );
  return JSON.stringify(JSON.parse(marked), null, 2).replace(/"\\u0000([-+.0-9eE]+)"/g, '$1');
}

async function show(reply, took, into) {
  const told = ['content-type', 'cache-status', 'age', 'retry-after', 'location']
    .filter((name) => reply.headers.get(name))
    .map((name) => `${name}: ${reply.headers.get(name)}`);
  let text = await reply.text();
  try {
    text = indented(text);
  } catch {
    /* it is not JSON: as it came */
  }
  const head = `${reply.status} ${reply.statusText} in ${took.toFixed(0)} ms\n${told.join('\n')}`;
  into.replaceChildren(make('pre', {}, head), make('pre', { tabindex: '0', 'aria-label': 'Answer' }, text));
}

function form(path, method, parameters, body) {
  const inputs = parameters.map((parameter) => {
    const input = make('input', { autocomplete: 'off', name: parameter.name });
    if (parameter.required) input.required = true;
    if (parameter.schema?.default !== undefined) input.placeholder = String(parameter.schema.default);
    return [parameter, input];
  });
  const area = body && make('textarea', { spellcheck: 'false' });
  if (area) area.value = example(body);
  const answer = make('div', { 'aria-live': 'polite' });
  const element = make(
    'form',
    { class: 'asking' },
    ...inputs.map(([parameter, input]) => make('label', {}, parameter.name, input)),
    area ? make('label', { class: 'wide' }, 'Body (JSON)', area) : null,
    make('button', { class: 'main', type: 'submit' }, method === 'get' ? 'Ask' : 'Send'),
  );
  element.addEventListener('submit', async (event) => {
    event.preventDefault();
    let address = path;
    const query = new URLSearchParams();
    for (const [parameter, input] of inputs) {
      if (parameter.in === 'path') address = address.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (input.value !== '') query.set(parameter.name, input.value);
    }
    if (query.size) address += `?${query}`;
    const options = { method: method.toUpperCase() };
    if (area) Object.assign(options, { body: area.value, headers: { 'content-type': 'application/json' } });
    const began = performance.now();
    answer.replaceChildren(make('p', { class: 'soft' }, 'Asking…'));
    try {
      const reply = await ask(address, options);
      await show(reply, performance.now() - began, answer);
    } catch (error) {
      answer.replaceChildren(make('p', { class: 'problem' }, `No answer: ${error.message}`));
    }
  });
  return make('div', {}, element, answer);
}

function operation(api, path, method, described) {
  const inside = make('div');
  const parameters = described.parameters ?? [];
  const role = described.security?.[0]?.bearer?.[0];
  if (role) inside.append(make('p', { class: 'soft' }, `Needs a token with the role ${role}.`));
  if (described.description) inside.append(make('p', {}, described.description));
  if (parameters.length) {
    inside.append(
      make('h3', {}, 'Parameters'),
      table(
        ['Name', 'Value', 'Meaning'],
        parameters.map((parameter) => [
          make('code', {}, parameter.name),
          `${inWords(resolved(api, parameter.schema))}${parameter.required ? '' : ', may be left out'}`,
          parameter.description ?? '',
        ]),
      ),
    );
  }
  const body = described.requestBody && resolved(api, described.requestBody.content?.['application/json']?.schema);
  if (body) inside.append(make('h3', {}, 'Body'), table(['Field', 'Value', 'Meaning'], fields(body)));
  inside.append(
    make('h3', {}, 'Answers'),
    table(
      ['Status', 'Meaning', 'Kind'],
      Object.entries(described.responses ?? {}).map(([status, reply]) => {
        const [kind, content] = Object.entries(reply.content ?? {})[0] ?? ['', {}];
        const name = content.schema?.$ref?.split('/').pop();
        return [status, reply.description ?? '', name ? `${kind}, ${name}` : kind];
      }),
    ),
  );
  const answer = resolved(
    api,
    Object.values(Object.entries(described.responses ?? {}).find(([s]) => s < '300')?.[1].content ?? {})[0]?.schema,
  );
  if (answer.properties) inside.append(make('h3', {}, 'Answer'), table(['Field', 'Value', 'Meaning'], fields(answer)));
  const streams = Object.keys(described.responses?.['200']?.content ?? {}).includes('text/event-stream');
  if (!streams) inside.append(make('h3', {}, 'Try it'), form(path, method, parameters, body));
  return make(
    'details',
    { class: 'operation card' },
    make(
      'summary',
      {},
      make('span', { class: `method ${method}` }, method.toUpperCase()),
      make('code', {}, path),
      make('span', { class: 'soft' }, described.summary ?? ''),
    ),
    inside,
  );
}

function draw(api) {
  const groups = new Map();
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((name) => item[name])) {
      const group = item[method].tags?.[0] ?? 'other';
      groups.set(group, [...(groups.get(group) ?? []), operation(api, path, method, item[method])]);
    }
  }
  const order = ['queries', 'statements', 'drills', 'service'];
  const names = [...groups.keys()].sort((a, b) => ((order.indexOf(a) + 9) % 9) - ((order.indexOf(b) + 9) % 9));
  document.getElementById('about').textContent =
    `${api.info.description} Version ${api.info.version}, as configured now.`;
  document.getElementById('groups').replaceChildren(...names.map((name) => make('a', { href: `#${name}` }, name)));
  document
    .getElementById('parts')
    .replaceChildren(...names.map((name) => make('section', { id: name }, make('h2', {}, name), ...groups.get(name))));
}

async function read() {
  const about = document.getElementById('about');
  const asking = document.getElementById('token-form');
  try {
    const reply = await ask('/openapi.json');
    asking.hidden = reply.ok && !token();
    if (reply.ok) draw(await reply.json());
    else if (reply.status === 401 || reply.status === 403)
      about.textContent = 'This service asks who calls: a token with the role viewer shows its interface.';
    else about.textContent = `The service answers ${reply.status}. Try again in a moment.`;
  } catch (error) {
    about.textContent = `The service does not answer: ${error.message}`;
  }
}

document.getElementById('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const value = document.getElementById('token').value.trim();
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    /* the tab keeps nothing: the token then lasts for no request, and the page says so by asking again */
  }
  read();
});
read();
