// Requests to the service this page came from, with a token if one was given. The token stays in this tab's memory and session.

const KEY = 'steadfast-token';

let token = kept();

function kept(): string {
  try {
    return sessionStorage.getItem(KEY) ?? '';
  } catch {
    return '';
  }
}

export function setToken(value: string): void {
  token = value;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // Kept in memory only.
  }
}

export function hasToken(): boolean {
  return token !== '';
}

/** An answer that says no, in the service's own words. */
export class Refusal extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** Sends a request. Throws a `Refusal` for an answer that is not a success, and the browser's own error if there is none. */
export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (token) headers.set('authorization', `Bearer ${token}`);
  const answer = await fetch(path, { ...init, headers, cache: 'no-store' });
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer: Response): Promise<Refusal> {
  const body: unknown = await answer.json().catch(() => null);
  const problem = (body ?? {}) as { title?: string; detail?: string };
  return new Refusal(answer.status, problem.detail ?? problem.title ?? `the service answered ${answer.status}`);
}

export async function json<T>(path: string, init: RequestInit = {}): Promise<T> {
  const limit = init.signal ?? AbortSignal.timeout(10_000);
  return (await request(path, { ...init, signal: limit })).json() as Promise<T>;
}

/**
 * As `json`, with every number that this language cannot hold as text: whole ones beyond 2^53, and decimals with more digits than a double has.
 */
export async function exact<T>(path: string): Promise<T> {
  const text = await (await request(path, { signal: AbortSignal.timeout(10_000) })).text();
  return JSON.parse(
    text.replace(TOKENS, (token) => (token.startsWith('"') || String(Number(token)) === token ? token : `"${token}"`)),
  ) as T;
}

/** Texts, which are to be left alone, and numbers. */
const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

export function post<T>(path: string, body: unknown): Promise<T> {
  return json<T>(path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
}

/** What went wrong, for a person. */
export function why(error: unknown): string {
  if (error instanceof Refusal) return error.message;
  if (error instanceof DOMException && error.name === 'TimeoutError') return 'the service did not answer in time';
  return 'the service cannot be reached';
}
