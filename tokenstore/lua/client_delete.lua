-- client_delete: removes a client.
--
-- KEYS 1 client:<id>
-- Returns {now}, whether or not there was one
local now = now_ms()
redis.call('DEL', KEYS[1])
return {now}
