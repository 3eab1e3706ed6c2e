// Server-sent events read by fetch, because the browser's own EventSource cannot send a token. It comes back by itself, further and
// further apart, and tells the service the last event it saw, so that nothing is missed in between.
import { request, Refusal } from './api';

export interface Frame {
  id: string;
  event: string;
  data: string;
}

export type Link =
  | { state: 'connecting' }
  | { state: 'live' }
  | { state: 'lost'; since: number; retryAt: number; cause: string }
  | { state: 'refused'; cause: string };

/** Takes text as it arrives, in whatever pieces, and gives whole events. */
export class Parser {
  private held = '';

  push(text: string): Frame[] {
    this.held += text;
    const frames: Frame[] = [];
    for (;;) {
      const end = this.held.indexOf('\n\n');
      if (end < 0) return frames;
      const frame = parse(this.held.slice(0, end));
      this.held = this.held.slice(end + 2);
      if (frame) frames.push(frame);
    }
  }
}

function parse(block: string): Frame | null {
  const frame: Frame = { id: '', event: 'message', data: '' };
  for (const line of block.split('\n')) {
    const colon = line.indexOf(':');
    if (colon <= 0) continue;
    const value = line.slice(colon + 1).replace(/^ /, '');
    const field = line.slice(0, colon);
    if (field === 'id' || field === 'event') frame[field] = value;
    else if (field === 'data') frame.data += frame.data ? `\n${value}` : value;
  }
  return frame.data ? frame : null;
}

/** Silence after which a stream counts as dead: the service says something every second. */
const SILENCE_MS = 8_000;
const FIRST_PAUSE_MS = 400;
const LONGEST_PAUSE_MS = 10_000;

export class Stream {
  private last = '';
  private attempt = 0;
  private lostSince = 0;
  private hurry: (() => void) | null = null;
  private abort = new AbortController();
  private closed = false;

  constructor(
    private readonly path: string,
    private readonly told: (frame: Frame) => void,
    private readonly linked: (link: Link) => void,
  ) {}

  /** Reads for ever, or until `close`. */
  async run(): Promise<void> {
    this.linked({ state: 'connecting' });
    while (!this.closed) {
      let cause = 'the stream ended';
      try {
        await this.read();
      } catch (error) {
        if (error instanceof Refusal && (error.status === 401 || error.status === 403)) {
          this.linked({ state: 'refused', cause: error.message });
          await this.pause(3_600_000);
          continue;
        }
        cause = error instanceof Refusal ? error.message : 'the service cannot be reached';
      }
      if (this.closed) return;
      await this.wait(cause);
    }
  }

  /** Tries again at once instead of at the end of the pause. */
  now(): void {
    this.attempt = 0;
    this.hurry?.();
  }

  close(): void {
    this.closed = true;
    this.abort.abort();
    this.hurry?.();
  }

  private async read(): Promise<void> {
    this.abort = new AbortController();
    let timer = setTimeout(() => this.abort.abort(), SILENCE_MS);
    try {
      const headers: Record<string, string> = { accept: 'text/event-stream' };
      if (this.last) headers['last-event-id'] = this.last;
      const answer = await request(this.path, { headers, signal: this.abort.signal });
      const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new Parser();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(() => this.abort.abort(), SILENCE_MS);
        for (const frame of parser.push(value)) {
          if (frame.id) this.last = frame.id;
          this.told(frame);
        }
        this.attempt = 0;
        this.lostSince = 0;
        this.linked({ state: 'live' });
      }
    } finally {
      clearTimeout(timer);
    }
  }

  private async wait(cause: string): Promise<void> {
    this.attempt += 1;
    this.lostSince ||= Date.now();
    const longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (this.attempt - 1));
    // Half of it is left to chance, so that a hundred pages do not come back in the same instant.
    const pause = longest / 2 + (Math.random() * longest) / 2;
    this.linked({ state: 'lost', since: this.lostSince, retryAt: Date.now() + pause, cause });
    await this.pause(pause);
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.hurry = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
