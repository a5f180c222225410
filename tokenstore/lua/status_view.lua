-- status_view: which places of a shard's status lists are revoked?
--
-- KEYS 1 head  2 invalid
-- Returns {now, history, last n given out, revoked places}
--         history is '' where there is no head: none was given out
--
-- It makes no head: asking begins no history.
local now = now_ms()
local h = redis.call('HMGET', KEYS[1], 'epoch', 'idx')
-- A write that changes nothing, so that a server which may not write, or was left
-- alone, does not show a list from before: see rotate. A head that has given out
-- places expires.
local left = redis.call('PTTL', KEYS[1])
if left > 0 then
  redis.call('PEXPIRE', KEYS[1], left)
end
return {now, h[1] or '', h[2] or 0, redis.call('ZRANGEBYSCORE', KEYS[2], string.format('(%.0f', now), '+inf')}
