-- In front of every script: Redis time and the shard's head.
--
-- The head is a hash: epoch (random, names one history of the shard), seq and
-- chain (of the last log entry), born (ms), access and session (the longest
-- access-token and session lifetimes, in ms, that this shard was ever asked
-- for; kept so that shortening a setting cannot shorten a denial), idx (the last
-- place given out in a status list, if any was), till (ms; when the log expires, if it was
-- ever written to).

-- now_ms returns Redis time in ms: one moment for the whole of a script.
local began = redis.call('TIME')
began = tonumber(began[1]) * 1000 + math.floor(tonumber(began[2]) / 1000)
local function now_ms()
  return began
end

-- set_back tells whether the clock was set back since cut, the time of a change of
-- credentials, by more than a login may take (receiptAge in account.go). A login that read
-- the credentials before the change then has a time of reading that lies in the future.
local function set_back(cut, now)
  return cut > now + 120000
end

-- user_epoch returns e, x and c of a user's ue:<uid>. Sessions of an older epoch than e are
-- over, but for x; c is when the credentials were last changed. A record that cannot be
-- read raises an error: taken for none, it would let sessions live again.
local function user_epoch(key)
  local u = redis.call('HMGET', key, 'e', 'x', 'c')
  if (u[1] and not string.find(u[1], '^%d+$')) or (not u[1] and (u[2] or u[3])) then
    error('the stored epoch of a user cannot be read: give every replica the same version')
  end
  return u
end

-- open_head returns {epoch, access, session, idx, seq, chain, till}. Where there is no head, this
-- Redis is new or has lost its data: a head with a new epoch is made, and with
-- it every token of an earlier history is dead. The new epoch is candidate, a random value
-- of this request. If a late copy of the request made the head again after another loss of
-- data, the same epoch, and with it dead tokens, would come back. So every script that may
-- make a head carries a deadline (late.lua).
local function open_head(head, log, candidate, now)
  local h = redis.call('HMGET', head, 'epoch', 'access', 'session', 'idx', 'seq', 'chain', 'till')
  if h[1] then
    h[2], h[3], h[5], h[7] = tonumber(h[2]) or 0, tonumber(h[3]) or 0, tonumber(h[5]), tonumber(h[7]) or 0
    return h
  end
  redis.call('HSET', head, 'epoch', candidate, 'seq', 0, 'chain', candidate, 'born', now)
  redis.call('DEL', log)
  return {candidate, 0, 0, false, 0, candidate, 0}
end

-- stretch raises the recorded lifetimes to the caller's and returns them.
local function stretch(head, h, access, session)
  if access > h[2] then
    redis.call('HSET', head, 'access', access)
    h[2] = access
  end
  if session > h[3] then
    redis.call('HSET', head, 'session', session)
    h[3] = session
  end
end

-- outlive moves a key's expiry to at, if that is later than what it has.
local function outlive(key, now, at)
  if redis.call('PTTL', key) < at - now then
    redis.call('PEXPIREAT', key, at)
  end
end

-- drop_expired removes members of a zset whose score, a time, has passed: up to a hundred
-- at a call, so that no call pays for all of them.
local function drop_expired(key, now)
  local old = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, 100)
  if #old > 0 then
    redis.call('ZREM', key, unpack(old))
  end
end

-- listed_until returns the score (ms) of a session in its user's list: its expiry plus an
-- eighth of the idle time, at most one hour, but not beyond abs. Because of that margin few
-- refreshes have to move the session in the list, and the list is ordered by expiry only
-- to the hour.
local function listed_until(expiry, idle, abs)
  return math.min(expiry + math.min(math.floor(idle / 8), 3600000), abs)
end
