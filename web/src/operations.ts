// The runbook as a page: the text that the service carries, so that whoever is called at night reads the pages of the version that runs.
import { at, h } from './dom';
import { markdown } from './markdown';

async function show(): Promise<void> {
  const body = at('runbook');
  try {
    const answer = await fetch('/docs/operations.md');
    if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
    // Other pages of the repository are not carried along: their names are told, and nothing is linked.
    const address = (link: string) => (/^(#|https?:)/.test(link) ? link : null);
    body.replaceChildren(...markdown(await answer.text(), address));
    contents(body);
    reach();
  } catch (error) {
    body.replaceChildren(
      h(
        'p',
        {},
        `The pages cannot be read: ${error instanceof Error ? error.message : 'the service cannot be reached'}.`,
      ),
    );
  }
}

function contents(body: HTMLElement): void {
  const links = [...body.querySelectorAll('h2')].map((heading) =>
    h('a', { href: `#${heading.id}` }, heading.textContent),
  );
  at('chapters').replaceChildren(...links);
}

/** The browser looked for the place before it was there. */
function reach(): void {
  const place = location.hash ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  place?.scrollIntoView({ behavior: 'instant' });
  place?.focus({ preventScroll: true });
}

void show();
