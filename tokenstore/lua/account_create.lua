-- account_create: makes an account, unless the username is taken.
--
-- KEYS 1 acct:<username>
-- ARGV 1 sub  2 password hash  3 disabled ('1' or '')  4 scopes  5 claims
-- Returns {0, now} made   {1, now} the username is taken
--
-- A hash's salt is random, so the same hash is the same request sent again.
local now = now_ms()
local hash = redis.call('HGET', KEYS[1], 'hash')
if hash and hash ~= ARGV[2] then
  return {1, now}
end
redis.call('HSET', KEYS[1], 'sub', ARGV[1], 'hash', ARGV[2], 'off', ARGV[3], 'scopes', ARGV[4], 'claims', ARGV[5], 'cre', now)
return {0, now}
