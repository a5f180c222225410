-- client_rotate: gives a client a new secret. The one before works for a while
-- longer, or no more; the one before that does not.
--
-- KEYS 1 client:<id>   ARGV 1 SHA-256 of the new secret  2 ms for which the old one works on
-- Returns {0, now} done   {1, now} no such client
local now = now_ms()
local hash = redis.call('HGET', KEYS[1], 'hash')
if not hash then
  return {1, now}
end
if hash ~= ARGV[1] then -- else the caller asks again, and the one before is known
  redis.call('HSET', KEYS[1], 'hash', ARGV[1], 'old', hash, 'until', now + tonumber(ARGV[2]))
end
return {0, now}
