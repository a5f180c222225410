-- keys_put: offers a sealed signing key to the replicas.
--
-- KEYS 1 keys   ARGV 1 kid  2 sealed key  3 '1': only if no key is active yet
-- Returns the whole hash: active = kid, k:<kid> = sealed key
--
-- At first boot every replica offers one, and the first to come is everybody's.
-- A replica that already signs with a key offers it again after Redis lost it.
local active = redis.call('HGET', KEYS[1], 'active')
if not active or ARGV[3] ~= '1' then
  redis.call('HSETNX', KEYS[1], 'k:' .. ARGV[1], ARGV[2])
end
if not active then
  redis.call('HSET', KEYS[1], 'active', ARGV[1])
end
return redis.call('HGETALL', KEYS[1])
