-- lookup: reads an account for a login, and charges the attempt.
--
-- KEYS 1 acct:<username>  2 costs  [3 receipt, then one throttle key for each limit]
-- ARGV 1 how long the receipt is kept (ms), then burst and period (ms) for each
--      throttle key, in order
-- Returns {now, wait ms, sub, password hash, disabled, scopes, claims, likely cost}
--         a wait of more than 0: nothing was charged
--         the account's fields are all '' if there is no such account
--         the likely cost, for a name without an account: see costs.lua
local now = now_ms()
local a = redis.call('HMGET', KEYS[1], 'sub', 'hash', 'off', 'scopes', 'claims')
if ((a[1] or '') == '' or (a[2] or '') == '') and redis.call('EXISTS', KEYS[1]) == 1 then
  error('a stored account cannot be read: give every replica the same version, or set a new password')
end
local wait = 0
if #KEYS > 2 then
  wait = charge(KEYS[3], ARGV[1], 4, now)
end
return {now, wait, a[1] or '', a[2] or '', a[3] or '', a[4] or '', a[5] or '', likely_cost(KEYS[2], KEYS[1])}
