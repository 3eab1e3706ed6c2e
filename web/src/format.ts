// Figures as people read them: three digits that matter, a unit they know.

export interface Figure {
  value: string;
  unit: string;
}

export const NONE: Figure = { value: '–', unit: '' };

export function duration(ms: number | null | undefined): Figure {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return NONE;
  if (ms === 0) return { value: '0', unit: 'ms' };
  if (ms < 1) return { value: String(Math.max(1, Math.round(ms * 1000))), unit: 'µs' };
  if (ms < 1000) return { value: digits(ms), unit: 'ms' };
  if (ms < 120_000) return { value: digits(ms / 1000), unit: 's' };
  if (ms < 7_200_000) return { value: String(Math.round(ms / 60_000)), unit: 'min' };
  if (ms < 172_800_000) return { value: digits(ms / 3_600_000), unit: 'h' };
  return { value: String(Math.round(ms / 86_400_000)), unit: 'days' };
}

export function count(value: number | null | undefined): string {
  if (value === null || value === undefined) return '–';
  return Math.round(value).toLocaleString('en').replaceAll(',', '\u202f');
}

export function rate(value: number): string {
  return value > 0 && value < 10 ? digits(value) : count(value);
}

export function share(value: number | null | undefined): Figure {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  const percent = value * 100;
  if (percent > 0 && percent < 0.1) return { value: '<0.1', unit: '%' };
  // Not everything is not "100 %".
  if (percent > 99.9 && percent < 100) return { value: '99.9', unit: '%' };
  return {
    value:
      percent >= 10 && Number.isInteger(Math.round(percent * 10) / 10)
        ? String(Math.round(percent))
        : trimmed(percent.toFixed(1)),
    unit: '%',
  };
}

export function bytes(value: number): Figure {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let step = 0;
  let left = value;
  while (left >= 1024 && step < units.length - 1) {
    left /= 1024;
    step += 1;
  }
  return { value: step === 0 ? String(left) : digits(left), unit: units[step]! };
}

/** A figure as running text, with a narrow space that does not break. */
export function text(figure: Figure): string {
  return figure.unit ? `${figure.value}\u00a0${figure.unit}` : figure.value;
}

export function clock(ms: number): string {
  return new Date(ms).toLocaleTimeString('en-GB');
}

/** A clock with its day, as people write it: "29 Nov, 14:05:03". */
export function dated(ms: number): string {
  const day = new Date(ms).toLocaleDateString('en-GB', { day: 'numeric', month: 'short' });
  return `${day}, ${clock(ms)}`;
}

/** A moment for people in other places: "2026-11-29 14:05:03.120 UTC". */
export function moment(ms: number): string {
  return `${new Date(ms).toISOString().replace('T', ' ').replace('Z', '')} UTC`;
}

export function ago(ms: number): string {
  if (ms < 2_000) return 'just now';
  const figure = duration(Math.floor(ms / 1000) * 1000);
  return `${text(figure)} ago`;
}

function digits(value: number): string {
  if (value >= 100) return String(Math.round(value));
  return trimmed(value >= 10 ? value.toFixed(1) : value.toFixed(2));
}

function trimmed(value: string): string {
  return value.includes('.') ? value.replace(/\.?0+$/, '') : value;
}
