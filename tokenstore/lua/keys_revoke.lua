-- keys_revoke: takes a signing key away for good. That its tokens are dead,
-- revoke_key tells every shard. It is not recognised any more either: whoever has it
-- could name any session.
--
-- KEYS 1 keys   ARGV 1-6 as in keyring.lua  7 kid
--      8 a key to sign with from now on, if it is the active one and there is no
--        next; or ''  9 that one sealed  10 its public half, or ''  11 its algorithm
-- Returns {code, now, 1 if a key is to be made, when the next one signs, the hash}, as keys_sync
--   0 revoked; asked again, too   1 it signs, and there is nothing to sign with instead
local now, s = now_ms(), settings()
local f = fields(KEYS[1])
-- A deletion of nothing goes first: a Redis out of memory then lets the rest through.
redis.call('HDEL', KEYS[1], '')
settle(KEYS[1], f, now, s)
local kid, other = ARGV[7], ARGV[8]
if f.active == kid and (not f.next or f.next == kid) and other == '' then
  return answer(1, KEYS[1], f, now, s)
end
if not string.match(f['d:' .. kid] or '', '^revoked') then
  put(KEYS[1], f, 'd:' .. kid, string.format('revoked %.0f', now))
end
if f.next == kid then
  drop(KEYS[1], f, 'next')
end
local signs = f.active == kid
if f['m:' .. kid] then
  take(KEYS[1], f, kid)
end
if f['r:' .. kid] then
  drop(KEYS[1], f, 'r:' .. kid)
end
if signs and f.next then
  activate(KEYS[1], f, f.next, now)
elseif signs then
  f.active = nil -- add makes it the active one
  add(KEYS[1], f, other, ARGV[9], ARGV[10], ARGV[11], now, s)
end
return answer(0, KEYS[1], f, now, s)
