// The last hundred things that happened, newest first.
import { at, h, icon, redraw } from './dom';
import { clock } from './format';
import { SHOWN, type Noted, type Store } from './store';
import { grouped, tell, tellGroup } from './words';

const KEEP: Record<string, (event: Noted) => boolean> = {
  all: () => true,
  trouble: (event) => ['warn', 'bad'].includes(tell(event).mood),
  connection: (event) => event.source === 'connection',
  service: (event) => event.source === 'service',
};

export function drawHistory(store: Store): void {
  const filter = at<HTMLSelectElement>('history-filter').value;
  const groups = grouped(store.events.filter(KEEP[filter] ?? (() => true))).slice(0, SHOWN);
  const key = `${filter}${groups.map((group) => `${group.last.id}:${group.count}`).join()}${store.link.state === 'live'}`;
  redraw(at('history-rows'), key, () =>
    groups.map((group) => {
      const told = tellGroup(group);
      return h(
        'tr',
        { 'data-mood': told.mood },
        h('td', {}, h('time', { datetime: new Date(group.last.at_ms).toISOString() }, clock(group.last.at_ms))),
        h('th', { scope: 'row' }, h('span', { class: `mark ${told.mood}` }, icon(told.icon)), told.title),
        h('td', {}, told.detail),
      );
    }),
  );
  const empty = at('history-empty');
  empty.hidden = groups.length > 0;
  empty.textContent =
    store.link.state !== 'live'
      ? 'Waiting for the service.'
      : filter === 'all'
        ? 'Nothing has happened yet.'
        : `None of this kind among the last ${SHOWN} events.`;
}
