-- keys_revoke: takes a signing key away for good. That its tokens are dead,
-- revoke_key tells every shard.
--
-- KEYS 1 keys   ARGV 1-5 as in keyring.lua  6 kid
--      7 a key to sign with from now on, if it is the active one and there is no
--        next; or ''  8 that one sealed  9 its algorithm
-- Returns {code, ...} as keys_sync does
--   0 revoked; asked again, too   1 it signs, and there is nothing to sign with instead
local now, s = now_ms(), settings()
local f = fields(KEYS[1])
settle(KEYS[1], f, now, s)
local kid, other = ARGV[6], ARGV[7]
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
  drop(KEYS[1], f, 'k:' .. kid)
  drop(KEYS[1], f, 'm:' .. kid)
end
if signs and f.next then
  activate(KEYS[1], f, f.next, now)
elseif signs then
  f.active = nil -- add makes it the active one
  add(KEYS[1], f, other, ARGV[8], ARGV[9], now, s)
end
return answer(0, KEYS[1], f, now, s)
