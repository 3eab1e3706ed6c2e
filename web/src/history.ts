// What happened, newest first: outages as one card each, and below them every event, to be searched, copied and read back.
import { copy } from './copy';
import { at, h, redraw, say } from './dom';
import { type Group, grouped, tell, tellGroup } from './events';
import { dated, duration, moment, text } from './format';
import { type Incident, report } from './incidents';
import { mark, pill, whatToDo } from './marks';
import type { Noted, Store } from './store';

/** Rows of a page of the history. */
const PAGE = 100;
/** Incidents shown before somebody asks for all. */
const FEW = 3;

const KEEP: Record<string, (event: Noted) => boolean> = {
  all: () => true,
  trouble: (event) => ['warn', 'bad'].includes(tell(event).mood),
  connection: (event) => event.source === 'connection',
  service: (event) => event.source === 'service',
};

let pages = 1;
let all = false;

/** Makes the controls work; `draw` draws the page, `bring` shows an incident on the charts. */
export function historyControls(store: Store, draw: () => void): void {
  const begin = () => {
    pages = 1;
    draw();
  };
  at('history-filter').addEventListener('change', begin);
  at('history-search').addEventListener('input', begin);
  at('history-older').addEventListener('click', () => {
    pages += 1;
    draw();
  });
  at('history-copy').addEventListener('click', () => {
    const lines = chosen(store).map((group) => {
      const told = tellGroup(group);
      return `${moment(group.last.at_ms)}  ${told.title}${told.detail ? `: ${told.detail}` : ''}`;
    });
    void copy(lines.join('\n'), at('history-copy'));
  });
  at('incidents-all').addEventListener('click', () => {
    all = true;
    draw();
  });
}

/** What the filter and the search leave, newest first. */
function chosen(store: Store): Group[] {
  const keep = KEEP[at<HTMLSelectElement>('history-filter').value] ?? (() => true);
  const wanted = at<HTMLInputElement>('history-search').value.trim().toLowerCase();
  const groups = grouped(store.events.filter(keep));
  if (!wanted) return groups;
  return groups.filter((group) => {
    const { title, detail } = tellGroup(group);
    return `${title} ${detail} ${dated(group.last.at_ms)}`.toLowerCase().includes(wanted);
  });
}

export function drawHistory(store: Store): void {
  const found = chosen(store);
  const groups = found.slice(0, pages * PAGE);
  const key = `${groups.map((group) => `${group.last.id}:${group.count}`).join()}${store.link.state === 'live'}`;
  redraw(at('history-rows'), key, () =>
    groups.map((group) => {
      const told = tellGroup(group);
      return h(
        'tr',
        { 'data-mood': told.mood },
        h('td', {}, h('time', { datetime: new Date(group.last.at_ms).toISOString() }, dated(group.last.at_ms))),
        h('th', { scope: 'row' }, mark(told.mood, told.icon), told.title),
        h('td', {}, told.detail),
      );
    }),
  );
  const empty = at('history-empty');
  empty.hidden = groups.length > 0;
  const sought =
    at<HTMLInputElement>('history-search').value || at<HTMLSelectElement>('history-filter').value !== 'all';
  say(
    empty,
    store.link.state !== 'live'
      ? 'Waiting for the service.'
      : sought
        ? 'Nothing of this kind has happened.'
        : 'Nothing has happened yet.',
  );
  at('history-older').hidden = found.length <= groups.length;
  say(at('history-count'), found.length > 0 ? `${groups.length} of ${found.length}` : '');
}

/** The incidents as cards. `bring` shows one on the charts. */
export function drawIncidents(store: Store, found: readonly Incident[], bring: (incident: Incident) => void): void {
  const shown = all ? found : found.slice(0, FEW);
  const key = JSON.stringify(shown.map(({ key, until, facts }) => [key, until, facts]));
  redraw(at('incidents'), key || 'none', () =>
    shown.length === 0
      ? [h('li', { class: 'card empty' }, 'No outage since the start.')]
      : shown.map((incident) => card(incident, store, bring)),
  );
  const more = at('incidents-all');
  more.hidden = shown.length === found.length;
  say(more, `All ${found.length}`);
}

function card(incident: Incident, store: Store, bring: (incident: Incident) => void): HTMLElement {
  const { title, mood, since, until, facts, trouble } = incident;
  const lasted = until === null ? 'goes on' : `lasted ${text(duration(until - since))}`;
  const button = h('button', { type: 'button', class: 'quiet' }, 'Copy as text');
  button.addEventListener('click', () => {
    const { namespace = '', version = '' } = store.status?.service ?? {};
    void copy(report(incident, { namespace, version, address: location.origin }), button);
  });
  return h(
    'li',
    { class: 'card incident', 'data-mood': mood },
    h(
      'div',
      { class: 'card-head' },
      h('h4', {}, `${title}, `, h('time', { datetime: new Date(since).toISOString() }, dated(since))),
      pill(mood, lasted),
    ),
    h(
      'dl',
      { class: 'incident-facts' },
      ...facts.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))),
    ),
    h(
      'p',
      { class: 'incident-ways' },
      button,
      h('button', { type: 'button', class: 'quiet', click: () => bring(incident) }, 'Show on the charts'),
      whatToDo(trouble),
    ),
  );
}
