// As much of Markdown as the project's own pages use, made into elements: headings, paragraphs, lists, tables, code and links.
import { h } from './dom';

/** Turns a text into elements. Headings get the ids by which GitHub links to them. */
export function markdown(text: string, address: (link: string) => string | null): HTMLElement[] {
  const lines = text.split('\n');
  const made: HTMLElement[] = [];
  const inline = (words: string) => inlined(words, address);
  const take = (more: (line: string) => boolean): string[] => {
    const taken: string[] = [];
    while (lines.length > 0 && more(lines[0]!)) taken.push(lines.shift()!);
    return taken;
  };
  while (lines.length > 0) {
    const line = lines[0]!;
    const heading = /^(#{1,4}) (.*)$/.exec(line);
    if (line.trim() === '') {
      lines.shift();
    } else if (heading) {
      lines.shift();
      const level = `h${heading[1]!.length}` as 'h1' | 'h2' | 'h3' | 'h4';
      made.push(h(level, { id: slug(heading[2]!), tabindex: -1 }, ...inline(heading[2]!)));
    } else if (line.startsWith('```')) {
      lines.shift();
      const code = take((next) => !next.startsWith('```'));
      lines.shift();
      made.push(h('pre', { tabindex: 0 }, h('code', {}, code.join('\n'))));
    } else if (line.startsWith('|')) {
      made.push(
        table(
          take((next) => next.startsWith('|')),
          inline,
        ),
      );
    } else if (ITEM.test(line)) {
      made.push(
        list(
          take((next) => ITEM.test(next) || /^ +\S/.test(next)),
          inline,
        ),
      );
    } else {
      const words = take((next) => next.trim() !== '' && !/^(#|```|\|)/.test(next) && !ITEM.test(next));
      made.push(h('p', {}, ...inline(words.join(' '))));
    }
  }
  return made;
}

const ITEM = /^(?:[-*]|\d+\.) /;

function list(lines: string[], inline: (words: string) => Node[]): HTMLElement {
  const items: string[] = [];
  for (const line of lines) {
    if (ITEM.test(line)) items.push(line.replace(ITEM, ''));
    else items[items.length - 1] += ` ${line.trim()}`;
  }
  return h(/^\d/.test(lines[0]!) ? 'ol' : 'ul', {}, ...items.map((item) => h('li', {}, ...inline(item))));
}

function table(lines: string[], inline: (words: string) => Node[]): HTMLElement {
  // A bar within a cell is written as \|.
  const cells = (line: string) =>
    line
      .replaceAll('\\|', '\u0000')
      .replace(/^\||\|\s*$/g, '')
      .split('|')
      .map((cell) => cell.replaceAll('\u0000', '|').trim());
  const [head = '', , ...rows] = lines;
  return h(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': cells(head).join(', ') },
    h(
      'table',
      {},
      h('thead', {}, h('tr', {}, ...cells(head).map((cell) => h('th', { scope: 'col' }, ...inline(cell))))),
      h('tbody', {}, ...rows.map((row) => h('tr', {}, ...cells(row).map((cell) => h('td', {}, ...inline(cell)))))),
    ),
  );
}

const INLINE = /`([^`]+)`|\*\*(.+?)\*\*|\*([^*\s](?:[^*]*[^*\s])?)\*|\[([^\]]+)\]\(([^)\s]+)\)/g;

function inlined(words: string, address: (link: string) => string | null): Node[] {
  const nodes: Node[] = [];
  let from = 0;
  for (const found of words.matchAll(INLINE)) {
    const [all, code, strong, emphasis, label, link] = found;
    if (found.index > from) nodes.push(document.createTextNode(words.slice(from, found.index)));
    from = found.index + all.length;
    if (code !== undefined) nodes.push(h('code', {}, code));
    else if (strong !== undefined) nodes.push(h('b', {}, ...inlined(strong, address)));
    else if (emphasis !== undefined) nodes.push(h('em', {}, ...inlined(emphasis, address)));
    else {
      const target = address(link!);
      nodes.push(
        target === null
          ? h('span', { title: link! }, ...inlined(label!, address))
          : h('a', { href: target }, ...inlined(label!, address)),
      );
    }
  }
  if (from < words.length) nodes.push(document.createTextNode(words.slice(from)));
  return nodes;
}

/** The id that GitHub gives a heading. */
export function slug(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N}\s_-]/gu, '')
    .trim()
    .replace(/\s/g, '-');
}
