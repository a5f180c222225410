-- account_delete: removes an account, or a client.
--
-- KEYS 1 acct:<username> or client:<id>  [2 costs, for an account]
-- Returns {now}, whether or not there was one
local now = now_ms()
local hash = KEYS[2] and redis.call('HGET', KEYS[1], 'hash')
redis.call('DEL', KEYS[1]) -- first: a Redis out of memory then lets the rest through
if hash then
  count(KEYS[2], hash, -1)
end
return {now}
