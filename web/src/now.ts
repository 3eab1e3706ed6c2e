// The first view: is it serving, from where, how fast, and what happened last.
import { at, h, icon, redraw, say } from './dom';
import { stories } from './events';
import { count, duration, type Figure, NONE, rate, text } from './format';
import { mark, whatToDo } from './marks';
import { drawPath } from './path';
import { sinceWritten, type Store, sum, type Sum, TICKS_KEPT } from './store';
import { headline } from './words';

/** What is called "now". */
const NOW_MS = 10_000;
/** Writes are rarer. */
const WRITES_MS = 60_000;

export function drawNow(store: Store): void {
  const now = sum(store.recent(NOW_MS));
  drawHeadline(store, now);
  drawFigures(store, now);
  const window = now.calls > 0 ? now : sum(store.ticks);
  say(at('path-window'), `last ${text(duration((now.calls > 0 ? now : window).seconds * 1000))}`);
  drawPath(store, window, now.calls > 0);
  drawLast(store);
}

function drawHeadline(store: Store, recent: Sum): void {
  const { link, tick, status, heardAt } = store;
  const written = recent.writes > 0 ? recent : sum(sinceWritten(store.recent(WRITES_MS)));
  const { mood, title, detail, said, trouble } = headline({ link, tick, status, recent, written, heardAt });
  at('hero').dataset.mood = mood;
  redraw(at('lamp'), mood, () => [icon(mood)]);
  say(at('headline'), title);
  say(at('detail'), detail);
  redraw(at('advice'), trouble ?? '', () => [trouble ? whatToDo(trouble) : null]);
  at('rescue').hidden = link.state !== 'lost';
  at('token-form').hidden = link.state !== 'refused';
  document.title = `${{ good: '●', warn: '▲', bad: '✕', idle: '○' }[mood]} ${title} · Steadfast`;
  speak(said);
}

/** A state must last so long to be spoken: one that comes and goes within it is no news. */
const SPEAK_AFTER_MS = 1_500;
let unsaid = { words: '', since: 0 };

/** Speaks a state to those who cannot see it, once, when it has changed. */
function speak(words: string): void {
  if (words !== unsaid.words) unsaid = { words, since: Date.now() };
  if (Date.now() - unsaid.since >= SPEAK_AFTER_MS) say(at('spoken'), words);
}

function drawFigures(store: Store, now: Sum): void {
  const all = sum(store.ticks);
  const last = store.tick;
  const answers = last && store.link.state !== 'connecting' ? last : undefined;
  figure('f-rate', now.seconds ? { value: rate(now.calls / now.seconds), unit: '' } : NONE);
  figure('f-writes', now.seconds ? { value: rate(now.writes / now.seconds), unit: '' } : NONE);
  figure('f-p50', duration(answers?.p50_10s_ms));
  figure('f-p99', duration(answers?.p99_10s_ms));
  figure('f-failed', all.seconds ? part(all.failed, all.calls) : NONE);
  figure('f-stale', all.seconds ? part(all.stale, all.answered) : NONE);
  at('f-failed').classList.toggle('bad', all.failed > 0);
  const window = text(duration(Math.min(TICKS_KEPT, all.seconds || TICKS_KEPT) * 1000));
  for (const element of document.querySelectorAll('.minutes')) say(element, `last ${window}`);
}

function part(some: number, all: number): Figure {
  return { value: count(some), unit: all ? `of ${count(all)}` : '' };
}

function figure(id: string, { value, unit }: Figure): void {
  redraw(at(id), `${value}|${unit}`, () => [value, unit ? h('small', {}, `\u00a0${unit}`) : null]);
}

function drawLast(store: Store): void {
  const told = stories(store.events).slice(0, 5);
  const now = store.now();
  const list = at('last');
  redraw(list, told.map((story) => story.key).join() || `none${store.link.state}`, () =>
    told.length === 0
      ? [
          h(
            'li',
            { class: 'empty' },
            store.link.state === 'live' ? 'Nothing has happened yet.' : 'Waiting for the service.',
          ),
        ]
      : told.map((story) =>
          h(
            'li',
            { 'data-mood': story.mood },
            mark(story.mood, story.icon),
            h(
              'div',
              {},
              h('p', {}, h('b', {}, story.title), h('time', { datetime: new Date(story.at).toISOString() })),
              story.detail ? h('p', { class: 'soft', title: story.detail }, story.detail) : null,
              story.trouble && story.mood !== 'good' ? whatToDo(story.trouble, 'What to do') : null,
            ),
          ),
        ),
  );
  list.querySelectorAll('time').forEach((element, index) => {
    const age = now - told[index]!.at;
    say(element, age < 2_000 ? 'now' : text(duration(Math.floor(age / 1000) * 1000)));
  });
}
