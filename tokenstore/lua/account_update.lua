-- account_update: changes fields of an account that exists.
--
-- KEYS 1 acct:<username>  2 old:<username>  3 costs
-- ARGV 1 the password hash that must be in force, or '' for any
--      2 how long KEYS 2 keeps that hash (ms); 0 leaves it as it is
--      then name and value of each field to set
-- Returns {0, now} changed   {1, now} no such account
--         {2, now} another password hash is in force: nothing changed
local now = now_ms()
local hash = redis.call('HGET', KEYS[1], 'hash')
if not hash then
  return {1, now}
end
if ARGV[1] ~= '' and hash ~= ARGV[1] then
  return {2, now}
end
if ARGV[3] == 'off' and ARGV[4] == '1' then
  -- To disable deletes first: a Redis out of memory then lets the rest through.
  redis.call('HDEL', KEYS[1], 'off')
end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
count(KEYS[3], hash, -1)
count(KEYS[3], redis.call('HGET', KEYS[1], 'hash'), 1)
if ARGV[2] ~= '0' then
  redis.call('SET', KEYS[2], hash, 'PX', ARGV[2])
end
return {0, now}
