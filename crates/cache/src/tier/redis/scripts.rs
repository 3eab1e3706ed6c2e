//! What is decided inside Redis, at the moment of the write.
//!
//! All but the beat are sent whole: a few hundred bytes, against one round trip more after every restart. Redis compiles each once.

/// KEYS epoch, watermark, all that is to be deleted. ARGV epoch, SQL's watermark, count, channel, announcement, a new epoch or
/// nothing. Refuses if the epoch is another (-1) or Redis is behind SQL (-2): to raise its watermark then would hide that; or if it has lost count.
/// Frees before it writes, if need be the watermark itself: a full Redis refuses a script that writes first.
pub(super) const APPLY: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end \
local at = tonumber(redis.call('GET', KEYS[2]) or '-1') or -1 \
if at < tonumber(ARGV[2]) or at + tonumber(ARGV[3]) >= 9007199254740992 then return -2 end \
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end \
local new = string.format('%.0f', at + tonumber(ARGV[3])) \
redis.call('SET', KEYS[2], new) \
if ARGV[6] ~= '' then redis.call('SET', KEYS[1], ARGV[6]) end \
redis.call('PUBLISH', ARGV[4], new .. ' ' .. ARGV[5]) \
return tonumber(new)";

/// KEYS watermark. ARGV channel, what to say. Adds the watermark, as it is between the announcements before this and those after.
pub(super) const BEAT: &str =
    "return redis.call('PUBLISH', ARGV[1], ARGV[2] .. (redis.call('GET', KEYS[1]) or '-'))";

/// Its SHA-1, by which Redis knows it once it was sent whole: it runs four times a second.
pub(super) const BEAT_SHA: &str = "c4a1c0f5ec2932042588bcad4ce7052e365292d7";

/// KEYS epoch, lease, value, tags… ARGV epoch, token, lease ms, tag ms, the head that was seen, a new token per tag.
pub(super) const TAKE_LEASE: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'epoch'} end \
local head = redis.pcall('GETRANGE', KEYS[3], 0, 5) \
if type(head) == 'string' and head ~= ARGV[5] then return {'held'} end \
if not redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then return {'held'} end \
local out = {'taken'} \
for i = 4, #KEYS do \
  redis.call('SET', KEYS[i], ARGV[i + 2], 'NX') \
  redis.call('PEXPIRE', KEYS[i], ARGV[4]) \
  out[#out + 1] = redis.call('GET', KEYS[i]) \
end \
return out";

/// KEYS epoch, watermark, tags… ARGV epoch, tag ms, a new token per tag. Answers the watermark and the tokens, or nothing.
pub(super) const OPEN_SEASON: &str = "\
local at = redis.call('GET', KEYS[2]) \
if redis.call('GET', KEYS[1]) ~= ARGV[1] or not at then return {} end \
local out = {at} \
for i = 3, #KEYS do \
  redis.call('SET', KEYS[i], ARGV[i], 'NX') \
  redis.call('PEXPIRE', KEYS[i], ARGV[2]) \
  out[#out + 1] = redis.call('GET', KEYS[i]) \
end \
return out";

/// KEYS epoch, watermark, value. ARGV epoch, watermark, bytes, ms.
pub(super) const FILL_IN_SEASON: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end \
redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4]) \
return 1";

/// KEYS epoch, lease, value. ARGV epoch, token, bytes, ms.
pub(super) const FILL: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end \
redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4]) \
redis.call('DEL', KEYS[2]) \
return 1";

/// What FILL must not be: for the test that proves it.
pub(super) const FILL_UNCHECKED: &str =
    "redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4]) redis.call('DEL', KEYS[2]) return 1";

/// KEYS lease. ARGV token.
pub(super) const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
