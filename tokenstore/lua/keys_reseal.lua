-- keys_reseal: replaces a sealed key by the same key under a newer secret.
--
-- KEYS 1 keys   ARGV 1 kid  2 sealed before  3 sealed anew
-- Returns {1} if it was replaced, {0} if somebody else did, or the key is gone
if redis.call('HGET', KEYS[1], 'k:' .. ARGV[1]) ~= ARGV[2] then
  return {0}
end
redis.call('HSET', KEYS[1], 'k:' .. ARGV[1], ARGV[3])
return {1}
