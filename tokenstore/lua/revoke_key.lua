-- revoke_key: denies every token of a shard that was signed with one key. The
-- denial has no end: who has stolen a key can sign tokens that never expire.
--
-- KEYS 1 dead keys  2 head  3 log  4 members
-- ARGV 1 epoch for a new head  2 id of the key  3 access ms  4 pad ms
-- Returns {0, now, seq, chain, followers, members, epoch, primary_id}; see revoke
--
-- The hash has a field for each key: the epoch of the history whose log has its entry.
local now = now_ms()
-- A deletion of nothing goes first: a Redis out of memory then lets the rest through.
redis.call('HDEL', KEYS[1], '')
local h = open_head(KEYS[2], KEYS[3], ARGV[1], now)
stretch(KEYS[2], h, tonumber(ARGV[3]), 0)
if redis.call('HGET', KEYS[1], ARGV[2]) ~= h[1] then
  local keep = h[2] + tonumber(ARGV[4])
  tell((select(3, append_log(KEYS[2], h, KEYS[3], now, keep, 'key', ARGV[2]))))
end
outlive(KEYS[2], now, now + h[3] + h[2] + tonumber(ARGV[4]))
-- A write in any case: a WAIT behind it then waits for the first one too.
redis.call('HSET', KEYS[1], ARGV[2], h[1])
local n, members = followers(KEYS[4])
return {0, now, h[5], h[6], n, members, h[1], primary_id()}
