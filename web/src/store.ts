// What the page knows. Both rings are as long as the service's own, so that a page that was away for a while shows what one that stayed shows.
import type { Frame, Link } from './stream';
import type { Happening, Reads, Status, Tick } from './wire';

/** Seconds shown. */
export const TICKS_KEPT = 300;
/** Events kept: as many as the service keeps. */
const EVENTS_KEPT = 1024;

export interface Noted extends Happening {
  id: string;
  source: 'connection' | 'service';
}

export class Store {
  /** Seconds of the process that runs now. */
  readonly ticks: Tick[] = [];
  /** Seconds of a process before it: they are drawn, and counted nowhere. */
  readonly past: Tick[] = [];
  readonly events: Noted[] = [];
  link: Link = { state: 'connecting' };
  status: Status | null = null;
  statusError: string | null = null;
  heardAt = 0;
  /** The service's clock minus this one's, in milliseconds. */
  private skew = 0;
  /** Names the process that told the newest second. */
  private run = '';
  private readonly seen = new Set<string>();

  get tick(): Tick | undefined {
    return this.ticks.at(-1);
  }

  /** Now, by the service's clock. */
  now(): number {
    return Date.now() + this.skew;
  }

  /** Takes an event; answers with what happened, if that is what it tells. */
  take(frame: Frame): Happening | null {
    this.heardAt = Date.now();
    if (frame.id && this.seen.has(frame.id)) return null;
    let data: unknown;
    try {
      data = JSON.parse(frame.data);
    } catch {
      return null;
    }
    if (frame.event === 'tick') this.takeTick(frame, data as Tick);
    if (frame.event !== 'connection' && frame.event !== 'service') return null;
    this.note(frame, data as Happening);
    return data as Happening;
  }

  private takeTick(frame: Frame, tick: Tick): void {
    const run = frame.id.slice(0, frame.id.lastIndexOf('-'));
    if (run !== this.run) {
      // Another process: what was counted by the one before is no figure of this one.
      this.past.push(...this.ticks.splice(0));
      this.run = run;
    }
    if (tick.at_ms <= (this.tick?.at_ms ?? 0)) return;
    this.skew = tick.at_ms - Date.now();
    this.ticks.push(tick);
    if (this.ticks.length > TICKS_KEPT) this.ticks.shift();
    while (this.past.length > 0 && this.past[0]!.at_ms < tick.at_ms - TICKS_KEPT * 1000) this.past.shift();
  }

  private note(frame: Frame, happening: Happening): void {
    if (frame.id) this.seen.add(frame.id);
    const noted: Noted = { ...happening, id: frame.id, source: frame.event as Noted['source'] };
    this.events.push(noted);
    if (happening.at_ms < (this.events.at(-2)?.at_ms ?? 0)) this.events.sort((a, b) => a.at_ms - b.at_ms);
    if (this.events.length > EVENTS_KEPT) this.seen.delete(this.events.shift()!.id);
  }

  /** The last ticks that are no older than `ms`. */
  recent(ms: number): Tick[] {
    const newest = this.tick?.at_ms ?? 0;
    return this.ticks.filter((tick) => tick.at_ms > newest - ms);
  }
}

/** Fewer seconds are never shown: so much room a first minute needs. */
const LEAST_SPAN = 60;

/** How many seconds a chart of `ticks` shows: as many as there are, so that a service which has just started is not drawn at the edge. */
export function spanOf(ticks: readonly Tick[]): number {
  const [first, last] = [ticks[0], ticks.at(-1)];
  if (!first || !last) return TICKS_KEPT;
  return Math.min(TICKS_KEPT, Math.max(LEAST_SPAN, (last.at_ms - first.at_ms) / 1000));
}

export interface Sum extends Reads {
  seconds: number;
  answered: number;
  calls: number;
}

/** All of `ticks` together. */
export function sum(ticks: readonly { reads: Reads; seconds?: number }[]): Sum {
  const total: Sum = {
    memory: 0,
    redis: 0,
    database: 0,
    failed: 0,
    stale: 0,
    slow: 0,
    writes: 0,
    writes_failed: 0,
    seconds: 0,
    answered: 0,
    calls: 0,
  };
  for (const { reads, seconds } of ticks) {
    total.seconds += seconds ?? 1;
    total.memory += reads.memory;
    total.redis += reads.redis;
    total.database += reads.database;
    total.failed += reads.failed;
    total.stale += reads.stale;
    total.slow += reads.slow;
    total.writes += reads.writes;
    total.writes_failed += reads.writes_failed;
  }
  total.answered = total.memory + total.redis + total.database;
  total.calls = total.answered + total.failed;
  return total;
}

/** Those after the last in which a write worked: writes are rare, and that they fail stays so until one does not. */
export function sinceWritten(ticks: readonly Tick[]): readonly Tick[] {
  return ticks.slice(ticks.findLastIndex(({ reads }) => reads.writes > 0) + 1);
}

/** The median and the greatest of a figure over some ticks; `null` where there is none. */
export function spread(
  ticks: readonly Tick[],
  of: (tick: Tick) => number | null | undefined,
): { median: number; most: number } | null {
  const values = ticks
    .map(of)
    .filter((value): value is number => typeof value === 'number')
    .sort((a, b) => a - b);
  if (values.length === 0) return null;
  return { median: values[Math.floor((values.length - 1) / 2)]!, most: values.at(-1)! };
}
