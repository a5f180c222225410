-- client_create: registers a client, unless the id is taken.
--
-- KEYS 1 client:<id>
-- ARGV 1 SHA-256 of the secret  2 grants  3 scopes  4 audiences  5 claims
--      6 introspect ('1' or '')
-- Returns {0, now} made   {1, now} the id is taken
--
-- One that is there with the same secret was made by the same caller, who asks again:
-- secrets are random.
local now = now_ms()
local hash = redis.call('HGET', KEYS[1], 'hash')
if hash then
  if hash == ARGV[1] then
    return {0, now}
  end
  return {1, now}
end
redis.call('HSET', KEYS[1], 'hash', ARGV[1], 'grants', ARGV[2], 'scopes', ARGV[3], 'aud', ARGV[4],
  'claims', ARGV[5], 'intro', ARGV[6], 'cre', now)
return {0, now}
