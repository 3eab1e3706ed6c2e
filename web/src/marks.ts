// Small marks that say how something is, by shape and word as well as by colour, and where to read on.
import { h, icon, type Icon } from './dom';
import { RUNBOOK, runbook, type Trouble } from './runbook';
import type { Mood } from './words';

export function mark(mood: Mood, name: Icon = mood): HTMLElement {
  return h('span', { class: `mark ${mood}` }, icon(name));
}

export function pill(mood: Mood, words: string): HTMLElement {
  return h('span', { class: `pill ${mood}` }, icon(mood), words);
}

/** A link to where the runbook speaks of a trouble. */
export function whatToDo(trouble: Trouble, words = `What to do: ${RUNBOOK[trouble].title}`): HTMLElement {
  const name = `What to do: ${RUNBOOK[trouble].title}`;
  return h('a', { class: 'advice', href: runbook(trouble), 'aria-label': name }, words);
}
