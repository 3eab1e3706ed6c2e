-- One decision for the whole fleet, on the one clock that all share. Answers {1 or 0, remaining, microseconds until one more would
-- pass, microseconds until nothing is held}. KEYS[1]: the counter. ARGV: algorithm, quota, period in microseconds, burst.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local quota, period, burst = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local function text(number) return string.format('%.0f', number) end

if ARGV[1] == 'bucket' then
  local interval = period / quota
  local full = interval * burst
  local due = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
  -- No request that passed leaves more than a full bucket to wait for: this was written before the clock was set back.
  if due - now > full + 1 then due = now end
  local next = due + interval
  if next - now > full then
    return {0, 0, text(next - now - full), text(due - now)}
  end
  redis.call('SET', KEYS[1], text(next), 'PX', text(math.ceil((next - now) / 1000) + 1))
  return {1, math.floor((full - (next - now)) / interval), 0, text(next - now)}
end

local window = math.floor(now / period)
local into = now - window * period
local kept = redis.call('HMGET', KEYS[1], 'w', 'c', 'p')
local current, previous = 0, 0
if tonumber(kept[1]) == window then
  current, previous = tonumber(kept[2]), tonumber(kept[3])
elseif tonumber(kept[1]) == window - 1 then
  previous = tonumber(kept[2])
end
local weighed = previous * (1 - into / period) + current
if weighed + 1 > quota then
  -- Until the window before weighs so much less; or, in a full window, until it is that window before and does.
  local wait
  if current + 1 <= quota then
    wait = period * (1 - (quota - 1 - current) / previous) - into
  else
    wait = period - into + period * math.max(0, 1 - (quota - 1) / current)
  end
  return {0, 0, text(math.ceil(math.max(wait, 0)) + 1), text(2 * period - into)}
end
redis.call('HSET', KEYS[1], 'w', text(window), 'c', current + 1, 'p', previous)
redis.call('PEXPIRE', KEYS[1], text(math.ceil((2 * period - into) / 1000) + 1))
return {1, math.floor(quota - weighed - 1), 0, text(2 * period - into)}
