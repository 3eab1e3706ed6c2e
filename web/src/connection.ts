// The connection to Redis, the cache and the checks in full, for whoever wants to know why.
import { at, h, redraw, say, type Child } from './dom';
import { ago, bytes, count, duration, share, text } from './format';
import type { Store } from './store';
import { breakerName, capital, checkName, type Mood, redisName } from './words';
import { mark, pill, whatToDo } from './marks';
import { drawNodes, moodOf } from './nodes';
import { troubleOfCheck } from './runbook';
import type { Health } from './wire';

const HEALTH: Record<Health, Mood> = { healthy: 'good', degraded: 'warn', unhealthy: 'bad' };

export function drawConnection(store: Store): void {
  const { status } = store;
  say(at('status-age'), store.statusError ? `not up to date: ${store.statusError}` : '');
  if (!status) {
    for (const id of ['redis-facts', 'cache-facts', 'checks']) {
      redraw(at(id), `wait${store.statusError ?? ''}`, () =>
        [
          h(
            id === 'checks' ? 'li' : 'div',
            { class: 'empty' },
            id === 'checks' ? (store.statusError ? capital(store.statusError) : 'Waiting for the service.') : '',
          ),
        ].filter(() => id === 'checks'),
      );
    }
    return;
  }
  const { redis, cache, health } = status;
  const flaps = redis.flapping !== null && redis.state === 'ready';
  redraw(at('redis-state'), `${redis.state}${flaps}`, () => [
    flaps ? pill('warn', 'In service, flapping') : pill(moodOf(redis.state), redisName(redis.state)),
  ]);
  drawBreaker(redis.breaker);
  facts('redis-facts', [
    ['Address', h('code', {}, redis.address)],
    [
      'Server',
      redis.server_version
        ? `Redis ${redis.server_version}${redis.tls ? `, ${redis.tls}` : ', no TLS'}`
        : 'not known yet',
    ],
    [redis.state === 'ready' ? 'In service for' : 'Away for', text(duration(redis.state_for_ms))],
    ['Attempts to connect', count(redis.attempts)],
    ['Reconnected', times(redis.reconnects)],
    ['Mean recovery', redis.mean_recovery_ms === null ? 'never lost' : text(duration(redis.mean_recovery_ms))],
    ['Stuck and reset', times(redis.stuck_resets)],
    ['Commands answered', redis.answered > 0 ? count(redis.answered) : 'none yet'],
    ['In flight', count(redis.in_flight)],
    ['Last error', redis.last_error ?? 'none'],
  ]);
  drawNodes(status);
  const trust = cache.redis;
  const believed: [Mood, string] = trust?.trusted
    ? ['good', 'Redis is in use']
    : trust?.suspended
      ? ['warn', 'Redis not in use']
      : ['warn', redis.state === 'ready' ? 'Redis being checked' : 'Without Redis'];
  redraw(at('cache-state'), believed.join(), () => [pill(...believed)]);
  const counts = cache.counts;
  facts('cache-facts', [
    ['In memory', `${count(cache.memory_entries)} entries, ${text(bytes(cache.memory_bytes))}`],
    ['Memory hears changes', cache.memory_proven ? 'yes' : 'no: its entries count as stale'],
    ...(typeof trust?.slot === 'number'
      ? [['Lies on one shard', `all of it in slot ${trust.slot}`] as [string, string]]
      : []),
    ['Invalidations waiting', cache.outbox_pending === 0 ? 'none' : count(cache.outbox_pending)],
    ...(cache.outbox_trouble ? [['Why they wait', cache.outbox_trouble] as [string, string]] : []),
    ...(cache.tasks_trouble ? [['Its own tasks', cache.tasks_trouble] as [string, string]] : []),
    ['Keys and tags invalidated', count(counts.invalidations)],
    ['Stale answers given', count(counts.stale)],
    ['Loads from SQL', `${count(counts.loads)}, ${count(counts.loads_failed)} failed`],
    ['Rejected to protect SQL', count(counts.overloaded)],
    ['Late fills refused', count(counts.fills_refused)],
    ['Redis calls failed or late', count(counts.redis_errors)],
    ['Redis calls answered in time', redis.success_rate === null ? 'none yet' : text(share(redis.success_rate))],
    ['Redis found behind, began anew', times(counts.epochs ?? 0)],
  ]);
  const checks = Object.entries(health.checks).sort(([, a], [, b]) => rank(b.status) - rank(a.status));
  redraw(at('checks'), JSON.stringify(checks), () =>
    checks.map(([name, check]) =>
      h(
        'li',
        {},
        mark(HEALTH[check.status]),
        h(
          'div',
          {},
          h(
            'p',
            {},
            h('b', {}, checkName(name)),
            h('span', { class: 'soft' }, check.latency_ms === null ? check.status : text(duration(check.latency_ms))),
          ),
          h('p', { class: 'soft' }, check.message),
          check.status !== 'healthy' && troubleOfCheck(name) ? whatToDo(troubleOfCheck(name)!, 'What to do') : null,
        ),
      ),
    ),
  );
  const { service, system } = status;
  facts('service-facts', [
    ['Requests under way', count(service.in_flight)],
    ['Event streams open', count(service.subscribers)],
    ['Memory of the process', text(bytes(system.resident_bytes))],
    ['Running for', text(duration(service.uptime_ms))],
  ]);
  say(at('namespace'), status.service.namespace);
  say(at('version'), `Steadfast ${status.service.version}, started ${ago(status.service.uptime_ms)}`);
}

function rank(status: Health): number {
  return { healthy: 0, degraded: 1, unhealthy: 2 }[status];
}

function drawBreaker(state: string): void {
  const nodes: [string, string][] = [
    ['closed', 'calls pass'],
    ['open', 'calls are refused at once'],
    ['half_open', 'a few calls, on trial'],
  ];
  redraw(at('breaker'), state, () =>
    nodes.map(([name, words]) =>
      h(
        'li',
        { class: name === state ? `on ${name}` : name, 'aria-current': name === state ? 'true' : null },
        h('b', {}, `${name === state ? 'Breaker ' : ''}${breakerName(name)}`),
        h('span', {}, words),
      ),
    ),
  );
}

function times(number: number): string {
  if (number === 0) return 'never';
  return number === 1 ? 'once' : `${count(number)} times`;
}

function facts(id: string, rows: [string, Child][]): void {
  const key = rows.map(([, value]) => (value instanceof Node ? value.textContent : value)).join('|');
  redraw(at(id), key, () => rows.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));
}
