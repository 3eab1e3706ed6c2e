// What the service says, field by field; a test holds a running service to it.

export interface Reads {
  memory: number;
  redis: number;
  database: number;
  failed: number;
  stale: number;
  writes: number;
  slow: number;
  writes_failed: number;
}

export type Health = 'healthy' | 'degraded' | 'unhealthy';

/** One second of the service. */
export interface Tick {
  at_ms: number;
  phase: 'starting' | 'serving' | 'draining';
  status: Health;
  ready: boolean;
  redis: string;
  breaker: string;
  rtt_ms: number | null;
  reads: Reads;
  hit_rate: number | null;
  error_rate: number | null;
  p50_ms: number | null;
  p99_ms: number | null;
  p999_ms: number | null;
  p50_10s_ms: number | null;
  p99_10s_ms: number | null;
  loads: number;
  in_flight: number;
  subscribers: number;
  outbox_lag_ms: number | null;
  cpu_percent: number | null;
  memory_percent: number | null;
  /** The outage that lasts. */
  outage: Outage | null;
  flapping: boolean;
}

/** One minute of the service; the newest is still under way. */
export interface Minute {
  at_ms: number;
  seconds: number;
  reads: Reads;
  loads: number;
  p50_ms: number | null;
  p99_ms: number | null;
  p999_ms: number | null;
  redis_away_s: number;
  outbox_lag_ms: number | null;
}

/** Something that was away, from its first sign to its end, with what callers felt meanwhile. */
export interface Outage {
  of: 'redis' | 'database' | 'reads';
  began_ms: number;
  ended_ms: number | null;
  ended_by: 'reconnected' | 'recovered' | 'succeeded' | null;
  cause: string;
  detection_ms: number | null;
  attempts: number;
  flapping: boolean;
  times: number;
  refused: number;
  unknown: number;
  calls: number;
  failed: number;
  stale: number;
  slow: number;
  writes: number;
  writes_failed: number;
}

/** Counts and latencies of one query over some time. */
export interface QueryFigures {
  window_ms: number;
  calls: number;
  memory: number;
  redis: number;
  database: number;
  failed: number;
  stale: number;
  slow: number;
  p50_ms: number | null;
  p99_ms: number | null;
}

/** The same of one statement. */
export interface StatementFigures {
  window_ms: number;
  calls: number;
  done: number;
  replayed: number;
  failed: number;
  slow: number;
  p50_ms: number | null;
  p99_ms: number | null;
}

export interface Named<F> {
  name: string;
  since_start: F;
  last_minute: F;
}

/** A server behind the name of Redis. */
export interface RedisNode {
  address: string;
  role: 'primary' | 'replica';
  /** Of its connection (`ready`, `connecting`, `down`, `closed`); where there is none, `in_sync`, `unknown` (nobody has told of late), `idle` (a cluster's, asked nothing yet) or `away`. */
  state: string;
  lag_bytes: number | null;
  /** How old its data are at most, of a cluster's replica that is read from. */
  lag_ms: number | null;
  breaker: string | null;
  can_take_over: boolean | null;
  slots: string | null;
  follows: string | null;
}

/** The slots of a cluster, and who serves them. */
export interface Shards {
  primaries: number;
  away: string[];
  alone: string[];
  /** All of the cache lies in it. */
  cache_slot: number | null;
  /** Whether nobody serves that slot; `null` if it is not known. */
  cache_away: boolean | null;
  uncovered: string;
  uncovered_slots: number;
  epoch: number;
  heard_ms_ago: number | null;
  error: string | null;
  discoveries: number;
  redirects: number;
  /** Absent where nothing is read from replicas. */
  from_replicas: FromReplicas | null;
}

/** Reads that replicas are to serve. */
export interface FromReplicas {
  /** How old the data of a replica may be which is read from. */
  max_lag_ms: number;
  served: number;
  /** Those that primaries served instead. */
  by_primaries: number;
  replicas: number;
  /** The replicas whose data are known to be young enough. */
  fit: number;
  lag_ms: number | null;
}

export interface Sentinel {
  address: string;
  state: 'agrees' | 'disagrees' | 'silent';
  answered_ms_ago: number | null;
  names: string | null;
  epoch: number | null;
  error: string | null;
}

/** The sentinels that watch the primary, and how well it is proven. */
export interface SentinelGroup {
  service: string;
  primary: string | null;
  epoch: number | null;
  switches: number;
  votes: number;
  majority: number;
  voters: number;
  confirmed_ms_ago: number | null;
  proof_within_ms: number | null;
  each: Sentinel[];
  /** Whether anybody has told of the replicas of late. */
  replicas_known: boolean;
  not_allowed: string[];
}

/** What the sentinels say of the primary that they watch. */
export interface Sentinels {
  service: string;
  primary: string | null;
  epoch: number | null;
  switches: number;
  votes: number;
  voters: number;
  confirmed_ms_ago: number | null;
  sentinels: {
    address: string;
    answered_ms_ago: number | null;
    error: string | null;
    dissents: boolean;
    names: string | null;
    epoch: number | null;
    quorum: number | null;
    thinks_down: boolean;
  }[];
  replicas: { address: string; in_sync: boolean; lag_bytes: number | null; priority: number | null }[];
  replicas_known: boolean;
  not_allowed: string[];
}

export interface Flapping {
  since_ms: number;
  reconnects: number;
  last_ms: number;
  cause: string;
}

/** Something that happened to a connection or to the service; fields by kind. */
export interface Happening {
  at_ms: number;
  event: string;
  [field: string]: unknown;
}

export interface Check {
  status: Health;
  latency_ms: number | null;
  message: string;
}

export interface Cluster {
  epoch: number;
  heard_ms_ago: number | null;
  error: string | null;
  not_allowed: string[];
  discoveries: number;
  redirects: number;
  replica_reads: number;
  replica_fallbacks: number;
  uncovered: string;
  uncovered_slots: number;
  nodes: ClusterNode[];
}

export interface ClusterNode {
  id: string | null;
  address: string | null;
  primary: boolean;
  follows: string | null;
  lag_ms: number | null;
  member: boolean;
  failing: boolean;
  slots: string;
  state: string | null;
  breaker: string | null;
  in_flight: number;
  answered: number;
  reconnects: number;
  rtt_ms: number | null;
  last_error: string | null;
}

export interface Status {
  service: {
    version: string;
    phase: string;
    uptime_ms: number;
    namespace: string;
    in_flight: number;
    subscribers: number;
    notice: string | null;
    queries: string[];
    statements: string[];
    drills: boolean;
  };
  health: { status: Health; phase: string; version: string; uptime_s: number; checks: Record<string, Check> };
  system: { cpu_percent: number | null; memory_percent: number | null; resident_bytes: number };
  reads: Reads;
  rates: { hit: number | null; fallback: number | null; error: number | null };
  queries: Named<QueryFigures>[];
  statements: Named<StatementFigures>[];
  outages: Outage[];
  redis: {
    state: string;
    state_for_ms: number;
    address: string;
    server_version: string | null;
    tls: string | null;
    attempts: number;
    reconnects: number;
    stuck_resets: number;
    mean_recovery_ms: number | null;
    last_error: string | null;
    breaker: string;
    in_flight: number;
    answered: number;
    success_rate: number | null;
    rtt_ms: number | null;
    fencing: string;
    flapping: Flapping | null;
    /** Absent where none are asked. */
    sentinel: Sentinels | null;
    /** Absent where Redis is one server, or one primary that sentinels name. */
    cluster: Cluster | null;
  };
  nodes: {
    found_by: 'single' | 'sentinel' | 'cluster';
    servers: RedisNode[];
    sentinels: SentinelGroup | null;
    shards: Shards | null;
  };
  cache: {
    counts: Record<string, number>;
    flights: number;
    guard: { running: number; waiting: number; open: boolean };
    memory_bytes: number;
    memory_entries: number;
    memory_proven: boolean;
    redis: {
      trusted: boolean;
      proven: boolean;
      suspended: string | null;
      epoch: string | null;
      watermark: number;
      /** In a cluster all of the cache lies in this slot. */
      slot: number | null;
    } | null;
    outbox_lag_ms: number | null;
    outbox_pending: number;
    outbox_trouble: string | null;
    tasks_trouble: string | null;
  };
}

export interface Offer {
  name: string;
  about: string;
  length_ms: number;
}

export interface Live {
  calls: number;
  failed: number;
  skipped: number;
  rate: number;
  memory: number;
  redis: number;
  database: number;
  stale: number;
  wrong: number;
  connection: string;
  breaker: string;
}

export interface Progress {
  elapsed_ms: number;
  total_ms: number;
  phase: string;
  broken: string[];
  subject: Live;
  control: Live | null;
  hand_built?: Live;
}

export interface Drill {
  id: number;
  scenario: string;
  about: string;
  control: boolean;
  hand_built: boolean;
  started_ms: number;
  state: 'running' | 'passed' | 'failed' | 'void' | 'stopped' | 'broken';
  progress?: Progress;
  error?: string;
}

export interface Kpi {
  name: string;
  phase: string;
  value: number | null;
  unit: 'ratio' | 'ms' | 'count';
  bound: 'above' | 'below' | 'at_most';
  formula: string;
  target: number;
  pass: boolean;
}

export interface Report {
  scenario: string;
  about: string;
  verdict: 'passed' | 'failed' | 'void';
  phases: {
    name: string;
    calls: number;
    ok: number;
    skipped: number;
    errors: Record<string, number>;
    latency_ms: { p99: number | null; max: number | null };
  }[];
  recovery: { detect_ms: number | null; first_success_ms: number | null; full_ms: number | null };
  kpis: Kpi[];
  control: Report | null;
  hand_built: Report | null;
}
