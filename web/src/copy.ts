// Puts a text on the clipboard, also where the page was not loaded over TLS and browsers withhold the modern way.
import { h, say } from './dom';

/** Copies a text and says so on the button that was pressed. */
export async function copy(text: string, button: HTMLElement): Promise<void> {
  const words = button.dataset.words ?? (button.textContent as string);
  button.dataset.words = words;
  say(button, (await put(text)) ? 'Copied' : 'Not copied: the browser refuses');
  setTimeout(() => say(button, words), 2_000);
}

async function put(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h('textarea', { readonly: true, class: 'unseen', 'aria-hidden': 'true' });
    area.value = text;
    const focused = document.activeElement as HTMLElement | null;
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    focused?.focus();
    return done;
  }
}
