-- Shared by the scripts of the signing keys: what time makes of them.
--
-- The hash holds active = kid, next = kid, access = the longest access lifetime
-- (ms) that a replica ever asked for, session = the longest session lifetime (ms) that
-- a replica ever asked for; for each key k:<kid> = sealed key, m:<kid> = "algorithm
-- published signs activated retired" (ms, 0 is not yet) and, if it has a public half,
-- p:<kid> = that; for a key that has gone by age r:<kid> = "<ms until which it is
-- recognised> <public half>"; and for a key that is no more, or was offered by hand in
-- vain, d:<kid> = "gone <when>" or "revoked <when>".
--
-- ARGV 1 access ms  2 ms that a key is published before it signs
--      3 ms between rotations, 0 for none  4 algorithm wanted  5 pad ms
--      6 session max ms

-- forget is for how long it is remembered that a key has gone by age (ms).
local forget = 30 * 24 * 3600 * 1000
-- most is how many keys that have gone are recognised: every replica reads all of them
-- each second.
local most = 100

local function settings()
  return {access = tonumber(ARGV[1]), publish = tonumber(ARGV[2]), rotation = tonumber(ARGV[3]), alg = ARGV[4], pad = tonumber(ARGV[5]), session = tonumber(ARGV[6])}
end

local function fields(key)
  local f, all = {}, redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    f[all[i]] = all[i + 1]
  end
  return f
end

local function put(key, f, name, value)
  redis.call('HSET', key, name, value)
  f[name] = value
end

local function drop(key, f, name)
  redis.call('HDEL', key, name)
  f[name] = nil
end

local function meta(f, kid)
  local alg, p, s, a, r = string.match(f['m:' .. kid] or '', '^(%S+) (%d+) (%d+) (%d+) (%d+)$')
  return {alg = alg, published = tonumber(p) or 0, signs = tonumber(s) or 0, activated = tonumber(a) or 0, retired = tonumber(r) or 0}
end

local function note(key, f, kid, m)
  put(key, f, 'm:' .. kid, string.format('%s %.0f %.0f %.0f %.0f', m.alg, m.published, m.signs, m.activated, m.retired))
end

-- retire makes a key verify only, until the last of its tokens has expired.
local function retire(key, f, kid, now)
  local m = meta(f, kid)
  m.retired = now
  note(key, f, kid, m)
end

local function activate(key, f, kid, now)
  if f.active and f['m:' .. f.active] then
    retire(key, f, f.active, now)
  end
  local m = meta(f, kid)
  m.activated = now
  note(key, f, kid, m)
  put(key, f, 'active', kid)
  if f.next == kid then
    drop(key, f, 'next')
  end
end

-- keep stores a sealed key, and its public half unless that is ''.
local function keep(key, f, kid, sealed, public)
  put(key, f, 'k:' .. kid, sealed)
  if public ~= '' then
    put(key, f, 'p:' .. kid, public)
  end
end

-- take removes a key from those that verify.
local function take(key, f, kid)
  drop(key, f, 'k:' .. kid)
  drop(key, f, 'm:' .. kid)
  if f['p:' .. kid] then
    drop(key, f, 'p:' .. kid)
  end
end

-- add makes a key the next one; or the active one, if there is none: then nobody
-- can hold an older set of keys that still verifies anything.
local function add(key, f, kid, sealed, public, alg, now, s)
  keep(key, f, kid, sealed, public)
  note(key, f, kid, {alg = alg, published = now, signs = now + s.publish, activated = 0, retired = 0})
  if f.active then
    put(key, f, 'next', kid)
  else
    activate(key, f, kid, now)
  end
end

-- shed forgets the keys that are not to be recognised any more.
local function shed(key, f, now)
  local list = {}
  for name, value in pairs(f) do
    if string.match(name, '^r:') then
      list[#list + 1] = {name = name, till = tonumber(string.match(value, '^(%d+) ')) or 0}
    end
  end
  table.sort(list, function(a, b) return a.till > b.till end)
  for i, r in ipairs(list) do
    if i > most or now > r.till then
      drop(key, f, r.name)
    end
  end
end

-- settle does what is due: a replica signs with the next key once it has been
-- published for long enough, and a retired key goes when no token of it can be
-- alive. Its public half stays until no session can be alive of which it has signed a
-- token: a logout learns from it that such a token is ours. A replica that has not heard
-- of a rotation may sign with the old key for as long as a key is published, and then
-- stops; hence publish is added to both times.
local function settle(key, f, now, s)
  if s.access > (tonumber(f.access) or 0) then
    put(key, f, 'access', string.format('%.0f', s.access))
  end
  if s.session > (tonumber(f.session) or 0) then
    put(key, f, 'session', string.format('%.0f', s.session))
  end
  if f.next then
    local m = meta(f, f.next)
    if m.published + s.publish > m.signs then
      m.signs = m.published + s.publish
      note(key, f, f.next, m)
    end
    if now >= m.signs then
      activate(key, f, f.next, now)
    end
  end
  local old, forgotten = {}, {}
  for name, value in pairs(f) do
    local kid = string.match(name, '^m:(.*)$')
    if kid then
      local m = meta(f, kid)
      if m.retired > 0 and now > m.retired + (tonumber(f.access) or 0) + s.publish + s.pad then
        old[#old + 1] = kid
      end
    end
    local gone = string.match(name, '^d:') and string.match(value, '^gone (%d+)$')
    if gone and now > tonumber(gone) + forget then
      forgotten[#forgotten + 1] = name
    end
  end
  for _, kid in ipairs(old) do
    if f['p:' .. kid] then
      local till = meta(f, kid).retired + s.publish + tonumber(f.session) + s.pad
      put(key, f, 'r:' .. kid, string.format('%.0f %s', till, f['p:' .. kid]))
    end
    take(key, f, kid)
    put(key, f, 'd:' .. kid, string.format('gone %.0f', now))
  end
  shed(key, f, now)
  for _, name in ipairs(forgotten) do
    drop(key, f, name)
  end
end

-- due tells whether a new key should be made now, and when the next one will
-- sign (ms, 0 for never).
local function due(f, now, s)
  if not f.active then
    return 1, now
  end
  if f.next then
    return 0, meta(f, f.next).signs
  end
  local m = meta(f, f.active)
  if m.alg ~= s.alg then
    return 1, now + s.publish
  end
  if s.rotation == 0 then
    return 0, 0
  end
  local at = m.activated + s.rotation
  return (now >= at - s.publish) and 1 or 0, at
end

-- answer is {code, now, 1 if a key is to be made, when the next one signs, the hash}.
local function answer(code, key, f, now, s)
  local wanted, at = due(f, now, s)
  return {code, now, wanted, at, redis.call('HGETALL', key)}
end
