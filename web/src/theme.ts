// The theme follows the system until somebody says otherwise; what they say is kept by their browser only.
export type Theme = 'system' | 'light' | 'dark';

const KEY = 'steadfast-theme';

export function chosen(): Theme {
  try {
    const kept = localStorage.getItem(KEY);
    return kept === 'light' || kept === 'dark' ? kept : 'system';
  } catch {
    return 'system';
  }
}

export function choose(theme: Theme): void {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // A browser that keeps nothing still shows the theme until the page is left.
  }
  if (theme === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

const NEXT: Record<Theme, Theme> = { system: 'light', light: 'dark', dark: 'system' };

/** Makes `button` go round the themes; `changed` is called after each step, and when the system changes. */
export function themeButton(button: HTMLButtonElement, changed: () => void): void {
  const name = button.querySelector('span')!;
  const say = () => {
    const theme = chosen();
    name.textContent = { system: 'Auto', light: 'Light', dark: 'Dark' }[theme];
    button.setAttribute('aria-label', `${name.textContent} theme; change`);
  };
  say();
  button.addEventListener('click', () => {
    choose(NEXT[chosen()]);
    say();
    changed();
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', changed);
}
