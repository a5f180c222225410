-- keys_put: offers a sealed signing key to the replicas.
--
-- KEYS 1 keys   ARGV 1-6 as in keyring.lua  7 kid  8 sealed key  9 its public half, or ''
--      10 its algorithm
--      11 due    it becomes the next key if one is due
--         asked  it becomes the next key unless there is one
--         now    the next key, or this one if there is none, signs from now on
--         lost   Redis has lost it: it verifies again, and signs if no key does
-- Returns {0, now, 1 if a key is to be made, when the next one signs, the hash}, as keys_sync
--
-- Of many that offer one at once, one wins; the others' keys are dropped. A key that was
-- offered by hand and dropped is remembered as gone: a copy of the request does nothing.
local now, s = now_ms(), settings()
local f = fields(KEYS[1])
settle(KEYS[1], f, now, s)
local kid, mode = ARGV[7], ARGV[11]
local by_hand = mode == 'asked' or mode == 'now'
if f['m:' .. kid] or f['d:' .. kid] then
  return answer(0, KEYS[1], f, now, s)
end
if mode == 'lost' then
  local first = not f.active
  keep(KEYS[1], f, kid, ARGV[8], ARGV[9])
  note(KEYS[1], f, kid, {alg = ARGV[10], published = now, signs = now, activated = now, retired = 0})
  if first then
    activate(KEYS[1], f, kid, now)
  else
    retire(KEYS[1], f, kid, now)
  end
elseif mode == 'now' and f.next then
  activate(KEYS[1], f, f.next, now)
elseif (mode == 'due' and due(f, now, s) == 1) or (by_hand and not f.next) then
  add(KEYS[1], f, kid, ARGV[8], ARGV[9], ARGV[10], now, s)
  if mode == 'now' and f.active ~= kid then
    activate(KEYS[1], f, kid, now)
  end
end
if by_hand and not f['m:' .. kid] then
  put(KEYS[1], f, 'd:' .. kid, string.format('gone %.0f', now))
end
return answer(0, KEYS[1], f, now, s)
