// Where the runbook, which the service carries, speaks of a trouble. A test holds the sections to its headings.

export interface Chapter {
  section: string;
  title: string;
}

export const RUNBOOK = {
  reads: { section: 'reads-fail', title: 'Reads fail' },
  writes: { section: 'writes-fail', title: 'Writes fail' },
  down: { section: 'redis-down', title: 'Redis down' },
  shard: { section: 'a-shard-away', title: 'A shard away' },
  slow: { section: 'redis-slow', title: 'Redis slow' },
  breaker: { section: 'breaker-open', title: 'Breaker open' },
  flapping: { section: 'flapping', title: 'Flapping' },
  failover: { section: 'failover', title: 'Failover' },
  outbox: { section: 'outbox-lagging-or-redis-suspended', title: 'Outbox lagging, or Redis suspended' },
  database: { section: 'database-down', title: 'Database down' },
  stale: { section: 'stale-answers', title: 'Stale answers' },
  stuck: { section: 'stuck-resets', title: 'Stuck resets' },
  credentials: { section: 'credentials-failing', title: 'Credentials failing' },
} as const satisfies Record<string, Chapter>;

export type Trouble = keyof typeof RUNBOOK;

export function runbook(trouble: Trouble): string {
  return `/docs/operations#${RUNBOOK[trouble].section}`;
}

/** The section that speaks of an event, if one does. */
export function troubleOf(event: string): Trouble | null {
  return EVENTS[event] ?? null;
}

const EVENTS: Record<string, Trouble> = {
  lost: 'down',
  down: 'down',
  connect_failed: 'down',
  unresponsive: 'slow',
  breaker: 'breaker',
  flapping: 'flapping',
  failed_over: 'failover',
  stuck_reset: 'stuck',
  credentials_failed: 'credentials',
  fence_refused: 'credentials',
  reads_failing: 'reads',
};

/** The section that speaks of a check which is not well, if one does. */
export function troubleOfCheck(name: string): Trouble | null {
  return CHECKS[name] ?? null;
}

const CHECKS: Record<string, Trouble> = {
  reads: 'reads',
  redis: 'down',
  sentinels: 'failover',
  shards: 'shard',
  database: 'database',
  statements: 'writes',
  breaker: 'breaker',
  outbox: 'outbox',
  flapping: 'flapping',
};
