-- lookup: reads an account for a login, and whether the throttle lets it in.
--
-- KEYS 1 acct:<username>, then one throttle key for each limit
-- ARGV burst and period (ms) for each throttle key, in order
-- Returns {now, wait ms, sub, password hash, disabled, scopes, claims}
--         the account's fields are all '' if there is no such account
local now = now_ms()
local wait = 0
for i = 2, #KEYS do
  wait = math.max(wait, wait_ms(KEYS[i], now, tonumber(ARGV[2 * i - 3]), tonumber(ARGV[2 * i - 2])))
end
local a = redis.call('HMGET', KEYS[1], 'sub', 'hash', 'off', 'scopes', 'claims')
return {now, wait, a[1] or '', a[2] or '', a[3] or '', a[4] or '', a[5] or ''}
