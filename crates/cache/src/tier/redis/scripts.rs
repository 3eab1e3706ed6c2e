//! The decisions that are made inside Redis, at the moment of the write.
//!
//! All but the beat are sent whole: a few hundred bytes, against one round trip more after every
//! restart. Redis compiles each once.

/// KEYS epoch, watermark, the record of the last delivery, the two logs of names, all that is to be
/// deleted. ARGV epoch, SQL's watermark, count, channel, announcement, a new epoch or nothing, how
/// many names a log holds, its life in ms, the command that publishes, the marks of the rows that
/// are delivered, 1 if Redis may be ahead of SQL whatever the reason, the names for the log.
/// Refuses if the epoch is another (-1) or Redis is behind SQL (-2): to raise its watermark then
/// would hide that; or if it has lost count. Refuses too if Redis is ahead of SQL (-3) by anything
/// but a delivery whose rows still wait, which SQL has not been told of, or of an earlier try: else
/// SQL was rolled back, and to raise its watermark past where it was would hide that. Frees before
/// it writes, if need be the watermark itself: a full Redis refuses a script that writes first.
///
/// The record: SQL's watermark before the delivery, that of Redis after it, the mark of the first
/// row, the watermark of Redis after the first try to deliver it.
///
/// A log is a hash of names, each with the watermark at which it was applied last; `from` and
/// `last` say between which watermarks it is complete. When one is full, or does not reach up to
/// now, the other begins anew. Logs that cannot be kept are thrown away: none is better than one
/// with a gap.
pub(super) const APPLY: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end \
local at = tonumber(redis.call('GET', KEYS[2]) or '-1') or -1 \
if at < tonumber(ARGV[2]) or at + tonumber(ARGV[3]) >= 9007199254740992 then return -2 end \
local first \
if at > tonumber(ARGV[2]) then \
  local from, to, mark, try = string.match(redis.call('GET', KEYS[3]) or '', '^(%d+) (%d+) (%S+) (%d+)$') \
  local here = to == string.format('%.0f', at) \
  if here and from == ARGV[2] and string.find(ARGV[10], ' ' .. mark .. ' ', 1, true) then first = try \
  elseif ARGV[11] ~= '1' and not (here and tonumber(try) <= tonumber(ARGV[2])) then return -3 end \
end \
redis.call('UNLINK', KEYS[2], KEYS[3]) \
for i = 6, #KEYS do redis.call('UNLINK', KEYS[i]) end \
local new = string.format('%.0f', at + tonumber(ARGV[3])) \
redis.call('SET', KEYS[2], new) \
redis.call('SET', KEYS[3], ARGV[2] .. ' ' .. new .. ' ' .. (string.match(ARGV[10], '%S+') or '-') .. ' ' .. (first or new)) \
if ARGV[6] ~= '' then redis.call('SET', KEYS[1], ARGV[6]) end \
redis.call(ARGV[9], ARGV[4], new .. ' ' .. ARGV[5]) \
local function step(...) \
  local done = redis.pcall(...) \
  if type(done) == 'table' and done.err then error(done.err) end \
  return done \
end \
local kept = pcall(function() \
  local now = string.format('%.0f', at) \
  local log, other = KEYS[4], KEYS[5] \
  local a, b = step('HMGET', log, 'from', 'last', 'count'), step('HMGET', other, 'from', 'last', 'count') \
  if tonumber(b[1] or -1) > tonumber(a[1] or -1) then log, other, a = other, log, b end \
  local count = tonumber(a[3] or 0) \
  if a[2] ~= now or count + #ARGV - 11 > tonumber(ARGV[7]) then \
    log, count = other, 0 \
    step('UNLINK', log) \
    step('HSET', log, 'from', now) \
  end \
  for i = 12, #ARGV do count = count + step('HSET', log, ARGV[i], new) end \
  step('HSET', log, 'last', new, 'count', count) \
  step('PEXPIRE', log, ARGV[8]) \
end) \
if not kept then redis.pcall('UNLINK', KEYS[4], KEYS[5]) end \
return tonumber(new)";

/// KEYS epoch, watermark, value, tags… Answers the time that the value has left, and all of them.
pub(super) const LOOK: &str =
    "return {redis.call('PTTL', KEYS[3]), redis.call('MGET', unpack(KEYS))}";

/// KEYS epoch, watermark, then for each of several readers value, tags… ARGV the places of the
/// values among the KEYS. Answers the time that each value has left, and behind these all that is
/// there.
pub(super) const LOOK_FOR_ALL: &str = "\
local out = {} \
for i = 1, #ARGV do out[i] = redis.call('PTTL', KEYS[tonumber(ARGV[i])]) end \
out[#out + 1] = redis.call('MGET', unpack(KEYS)) \
return out";

/// KEYS watermark. ARGV channel, what to say, the command that publishes. Adds the watermark, as it
/// is between the announcements before this and those after.
pub(super) const BEAT: &str =
    "return redis.call(ARGV[3], ARGV[1], ARGV[2] .. (redis.call('GET', KEYS[1]) or '-'))";

/// The SHA-1 of [`BEAT`], by which Redis knows it once it was sent whole: it runs four times a
/// second.
pub(super) const BEAT_SHA: &str = "acfd9a7bfca162bcaa6b1bc9489838b0247663b1";

/// KEYS epoch, lease, value, tags… ARGV epoch, token, lease ms, tag ms, the head that was seen, 1
/// if the lease is taken from whoever holds it, a new token per tag.
pub(super) const TAKE_LEASE: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'epoch'} end \
local head = redis.pcall('GETRANGE', KEYS[3], 0, 5) \
if type(head) == 'string' and head ~= ARGV[5] then return {'held'} end \
if ARGV[6] == '1' then redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) \
elseif not redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then return {'held'} end \
local out = {'taken'} \
for i = 4, #KEYS do \
  redis.call('SET', KEYS[i], ARGV[i + 3], 'NX') \
  redis.call('PEXPIRE', KEYS[i], ARGV[4]) \
  out[#out + 1] = redis.call('GET', KEYS[i]) \
end \
return out";

/// KEYS epoch, watermark, tags… ARGV epoch, tag ms, a new token per tag. Answers the watermark and
/// the tokens, or nothing.
pub(super) const OPEN_WINDOW: &str = "\
local at = redis.call('GET', KEYS[2]) \
if redis.call('GET', KEYS[1]) ~= ARGV[1] or not at then return {} end \
local out = {at} \
for i = 3, #KEYS do \
  redis.call('SET', KEYS[i], ARGV[i], 'NX') \
  redis.call('PEXPIRE', KEYS[i], ARGV[2]) \
  out[#out + 1] = redis.call('GET', KEYS[i]) \
end \
return out";

/// KEYS epoch, values…, leases… ARGV epoch, how many values, the place of the last byte. Answers
/// what each value begins with, up to its tags or, if it has any, up to there; nothing of one that
/// is not there. Takes the leases away.
pub(super) const PLACES: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {} end \
local out, values = {}, tonumber(ARGV[2]) \
local function head(i, last) \
  local bytes = redis.pcall('GETRANGE', KEYS[i + 1], 0, last) \
  return type(bytes) == 'string' and bytes or '' \
end \
for i = 1, values do \
  out[i] = head(i, 35) \
  if #out[i] == 36 and string.sub(out[i], 35) ~= '\\0\\0' then out[i] = head(i, ARGV[3]) end \
end \
for i = values + 2, #KEYS do redis.call('DEL', KEYS[i]) end \
return out";

/// A function that gives a value that is to live for so many ms its stamp, if it is to have one:
/// the moment at which it expires, by this very clock, and a sum to check it by (`envelope.rs`).
/// The value is one without if Redis may not be asked the time, or is older than 7, which gives
/// itself away by not telling its version here: its replicas count by their own clocks.
macro_rules! stamped {
    () => {
        "\
local function stamped(bytes, ms) \
  if string.byte(bytes) ~= 3 then return bytes end \
  local now = redis.REDIS_VERSION_NUM and redis.pcall('TIME') \
  if not now or now.err then return '\\2' .. string.sub(bytes, 2) end \
  local at = now[1] * 1000 + math.floor(now[2] / 1000) + ms \
  local a, b, c, d = string.byte(bytes, 3, 6) \
  local sum = (at + a + b * 256 + c * 65536 + d * 16777216) % 4294967291 \
  local function part(n, i) return math.floor(n / 256 ^ i) % 256 end \
  return bytes .. string.char( \
    part(at, 0), part(at, 1), part(at, 2), part(at, 3), part(at, 4), part(at, 5), \
    part(sum, 0), part(sum, 1), part(sum, 2), part(sum, 3)) \
end "
    };
}

/// KEYS epoch, watermark, value, the two logs of names. ARGV epoch, the window's watermark, bytes,
/// ms, the head that was seen or `*`, the names that govern the value. Refuses what was invalidated
/// since the window began, and everything if the logs do not reach from there up to now. Answers -1
/// if another value is there than was seen, whose tags are not known; not if none is there.
pub(super) const FILL_IN_WINDOW: &str = concat!(
    stamped!(),
    "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
local at, window = redis.call('GET', KEYS[2]), tonumber(ARGV[2]) \
if at ~= ARGV[2] then \
  local a, b = redis.call('HMGET', KEYS[4], 'from', 'last'), redis.call('HMGET', KEYS[5], 'from', 'last') \
  if tonumber(b[1] or -1) > tonumber(a[1] or -1) then a, b = b, a end \
  if not at or not a[1] or a[2] ~= at then return 0 end \
  local from = tonumber(a[1]) \
  if b[1] and b[2] == a[1] then from = tonumber(b[1]) end \
  if from > window then return 0 end \
  for i = 6, #ARGV do \
    for log = 4, 5 do \
      local last = redis.call('HMGET', KEYS[log], ARGV[i])[1] \
      if last and tonumber(last) > window then return 0 end \
    end \
  end \
end \
if ARGV[5] ~= '*' then \
  local head = redis.pcall('GETRANGE', KEYS[3], 0, 5) \
  if type(head) == 'string' and head ~= '' and head ~= ARGV[5] then return -1 end \
end \
redis.call('SET', KEYS[3], stamped(ARGV[3], ARGV[4]), 'PX', ARGV[4]) \
return 1"
);

/// KEYS epoch, lease, value. ARGV epoch, token, bytes, ms.
pub(super) const FILL: &str = concat!(
    stamped!(),
    "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end \
redis.call('SET', KEYS[3], stamped(ARGV[3], ARGV[4]), 'PX', ARGV[4]) \
redis.call('DEL', KEYS[2]) \
return 1"
);

/// A FILL without its checks: for the test that proves them necessary.
pub(super) const FILL_UNCHECKED: &str = concat!(
    stamped!(),
    "redis.call('SET', KEYS[3], stamped(ARGV[3], ARGV[4]), 'PX', ARGV[4]) \
redis.call('DEL', KEYS[2]) \
return 1"
);

/// KEYS lease. ARGV token.
pub(super) const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
