// Elements without markup in strings, so that nothing the service says can become markup.

export type Child = Node | string | null | undefined | false;
type Props = Record<string, string | number | boolean | ((event: Event) => void) | null | undefined>;

export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(
    ...children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false),
  );
  return element;
}

const SVG = 'http://www.w3.org/2000/svg';

export function svg(tag: string, attributes: Record<string, string | number>, ...children: Node[]): SVGElement {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** The element of that id, which the page always has. */
export function at<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

/** Sets text only where it differs, so that screen readers and selections are left alone. */
export function say(element: Element, words: string): void {
  if (element.textContent !== words) element.textContent = words;
}

/** Tells those who listen of something that they asked for. */
export function announce(words: string): void {
  say(at('announce'), words);
}

/** Replaces the children if what they are made from has changed. */
export function redraw(element: HTMLElement, key: string, make: () => Child[]): void {
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  element.replaceChildren(
    ...make().filter((child): child is Node | string => child !== null && child !== undefined && child !== false),
  );
}

const PATHS = {
  good: 'M20 6 9 17l-5-5',
  warn: 'M12 3.500 2.500 20h19zM12 10v4.500M12 17.300v.2',
  bad: 'M6 6l12 12M18 6 6 18',
  idle: 'M5 12h14',
  memory: 'M7 7h10v10H7zM10 3v4M14 3v4M10 17v4M14 17v4M3 10h4M3 14h4M17 10h4M17 14h4',
  redis: 'M12 3 3 7.500l9 4.500 9-4.500zM3 12l9 4.500 9-4.500M3 16.500 12 21l9-4.500',
  database:
    'M4 6c0-1.700 3.600-3 8-3s8 1.300 8 3-3.600 3-8 3-8-1.300-8-3zM4 6v12c0 1.700 3.600 3 8 3s8-1.300 8-3V6M4 12c0 1.700 3.600 3 8 3s8-1.300 8-3',
  calls: 'M4 12h13M12 6l6 6-6 6',
  link: 'M9 15l6-6M10.500 6.500l1.800-1.800a4.600 4.600 0 0 1 6.500 6.500L17 13M13.500 17.500l-1.800 1.800a4.600 4.600 0 0 1-6.500-6.500L7 11',
  cut: 'M8.500 8.500 6 11a4.500 4.500 0 0 0 6.400 6.400l1-1M15.500 15.500 18 13a4.500 4.500 0 0 0-6.400-6.400l-1 1M4 4l16 16',
  service: 'M4 5h16v6H4zM4 13h16v6H4zM7.500 8h.1M7.500 16h.1',
  breaker: 'M3 12h5M16 12h5M8 12l7-5',
  key: 'M14.500 9.500a4 4 0 1 0-4 4L12 12h2v-2h2zM6 18l5-5',
  play: 'M8 5.500v13l10.500-6.500z',
  stop: 'M7 7h10v10H7z',
  open: 'M14 4h6v6M20 4l-9 9M18 14v5H5V6h5',
  clock: 'M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 7v5l3.500 2',
} as const;

export type Icon = keyof typeof PATHS;

export function icon(name: Icon, extra = ''): SVGElement {
  return svg(
    'svg',
    { viewBox: '0 0 24 24', class: `icon ${extra}`, 'aria-hidden': 'true', focusable: 'false' },
    svg('path', { d: PATHS[name] }),
  );
}
