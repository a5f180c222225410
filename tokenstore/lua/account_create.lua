-- account_create: makes an account, unless the username is taken.
--
-- KEYS 1 acct:<username>  2 costs
-- ARGV 1 sub  2 password hash  3 disabled ('1' or '')  4 scopes  5 claims
--      6 salt for new costs
-- Returns {0, now} made   {1, now} the username is taken
--
-- An account that is there and alike in everything was made by the same caller, who asks
-- again: a hash's salt is random. It is left as it is.
local now = now_ms()
local have = redis.call('HMGET', KEYS[1], 'sub', 'hash', 'off', 'scopes', 'claims')
if have[2] then
  for i = 1, 5 do
    if have[i] ~= ARGV[i] then
      return {1, now}
    end
  end
  return {0, now}
end
redis.call('HSETNX', KEYS[2], 'salt', ARGV[6])
count(KEYS[2], ARGV[2], 1)
redis.call('HSET', KEYS[1], 'sub', ARGV[1], 'hash', ARGV[2], 'off', ARGV[3], 'scopes', ARGV[4], 'claims', ARGV[5], 'cre', now)
return {0, now}
