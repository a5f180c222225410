-- meta: records what must be the same for every replica, once.
--
-- KEYS 1 meta   ARGV 1 number of shards
-- Returns {shards in force, now}
--
-- It writes only what is missing: a full Redis can still be asked.
local shards = redis.call('HGET', KEYS[1], 'shards')
if not shards then
  shards = ARGV[1]
  redis.call('HSET', KEYS[1], 'shards', shards)
end
return {tonumber(shards), now_ms()}
