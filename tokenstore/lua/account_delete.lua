-- account_delete: removes an account.
--
-- KEYS 1 acct:<username>
-- Returns {now}, whether or not there was one
local now = now_ms()
redis.call('DEL', KEYS[1])
return {now}
