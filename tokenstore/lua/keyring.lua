-- Shared by the scripts of the signing keys: what time makes of them.
--
-- The hash holds active = kid, next = kid, access = the longest access lifetime
-- (ms) that a replica ever asked for; for each key k:<kid> = sealed key and m:<kid> =
-- "algorithm published signs activated retired" (ms, 0 is not yet); and for a key that is
-- no more, or was offered by hand in vain, d:<kid> = "gone <when>" or "revoked <when>".
--
-- ARGV 1 access ms  2 ms that a key is published before it signs
--      3 ms between rotations, 0 for none  4 algorithm wanted  5 pad ms

-- forget is for how long it is remembered that a key has gone by age (ms).
local forget = 30 * 24 * 3600 * 1000

local function settings()
  return {access = tonumber(ARGV[1]), publish = tonumber(ARGV[2]), rotation = tonumber(ARGV[3]), alg = ARGV[4], pad = tonumber(ARGV[5])}
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

-- add makes a key the next one; or the active one, if there is none: then nobody
-- can hold an older set of keys that still verifies anything.
local function add(key, f, kid, sealed, alg, now, s)
  put(key, f, 'k:' .. kid, sealed)
  note(key, f, kid, {alg = alg, published = now, signs = now + s.publish, activated = 0, retired = 0})
  if f.active then
    put(key, f, 'next', kid)
  else
    activate(key, f, kid, now)
  end
end

-- settle does what is due: a replica signs with the next key once it has been
-- published for long enough, and a retired key goes when no token of it can be
-- alive. A replica that has not heard of a rotation may sign with the old key for
-- as long as a key is published, and then stops; hence publish is added.
local function settle(key, f, now, s)
  if s.access > (tonumber(f.access) or 0) then
    put(key, f, 'access', string.format('%.0f', s.access))
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
    drop(key, f, 'k:' .. kid)
    drop(key, f, 'm:' .. kid)
    put(key, f, 'd:' .. kid, string.format('gone %.0f', now))
  end
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
