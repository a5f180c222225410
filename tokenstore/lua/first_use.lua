-- first_use: may something that counts once be used now? The first to ask may, and may
-- ask again: an answer can get lost.
--
-- KEYS 1 used:<id>   ARGV 1 nonce of the asker  2 time (ms) until which it is remembered
-- Returns {1, now} the asker's own use   {0, now} it was used before
local now = now_ms()
if tonumber(ARGV[2]) <= now then
  return {0, now}
end
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PXAT', ARGV[2]) then
  return {1, now}
end
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return {1, now}
end
return {0, now}
