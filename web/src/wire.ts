// What the service says, as the page understands it. Fields that an older service may lack are optional.

export interface Reads {
  memory: number;
  redis: number;
  database: number;
  failed: number;
  stale: number;
  writes: number;
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
  p999_ms?: number | null;
  loads?: number;
  in_flight: number;
  subscribers: number;
  outbox_lag_ms: number | null;
  cpu_percent: number;
  memory_percent: number;
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
    drills: boolean;
  };
  health: { status: Health; checks: Record<string, Check> };
  system?: { cpu_percent: number; memory_percent: number; resident_bytes: number };
  reads: Reads;
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
    success_rate?: number | null;
    rtt_ms: number | null;
    fencing: string;
  };
  cache: {
    counts: Record<string, number>;
    guard: { running: number; waiting: number; open: boolean };
    memory_bytes: number;
    memory_entries: number;
    memory_proven: boolean;
    redis: { trusted: boolean; suspended: string | null; epoch: string | null; watermark: number } | null;
    outbox_lag_ms: number | null;
    outbox_pending: number;
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
}

export interface Drill {
  id: number;
  scenario: string;
  about: string;
  control: boolean;
  started_ms: number;
  state: 'running' | 'passed' | 'failed' | 'stopped' | 'broken';
  progress?: Progress;
  error?: string;
}

export interface Kpi {
  name: string;
  phase: string;
  value: number | null;
  unit?: string;
  target: number | string | Record<string, unknown>;
  pass: boolean;
}

export interface Report {
  scenario: string;
  about: string;
  verdict: 'passed' | 'failed';
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
}
