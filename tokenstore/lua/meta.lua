-- meta: records what must be the same for every replica, once.
--
-- KEYS 1 meta   ARGV 1 number of shards
-- Returns {shards in force, now}
redis.call('HSETNX', KEYS[1], 'shards', ARGV[1])
return {tonumber((redis.call('HGET', KEYS[1], 'shards'))), now_ms()}
