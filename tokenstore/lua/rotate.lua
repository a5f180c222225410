-- rotate: one refresh token is presented; decides what becomes of its family.
--
-- A session rotates at most once in a grace. Every token that was current within the
-- grace therefore gets the current one, in whatever order the requests of one client
-- arrive: it is the current token or its parent, and never a grandparent.
--
-- KEYS 1 rt:<sid>  2 us:<uid>  3 ue:<uid>  4 deny:<sid>  5 head  6 log  7 members
--      8 invalid  9 idx:<uid>
-- ARGV 1 epoch for a new head  2 sid  3 gen shown  4 SHA-256 of the secret shown
--      5 SHA-256 of its successor's secret
--      6 idle ms  7 access ms  8 grace ms  9 pad ms
--      10 '1': the session has a place in a status list, or gets one
--      11 the registered client that shows it, or '' for the service's own logins
--      12 scope asked for, or '' for all that was granted
--      13 thumbprint of the key that whoever shows it has proven to hold, or ''
--      14 bytes of a token that there are for what is stored of the session, or 0
--      15 how many claims the session may have, if 14 is not 0
-- Returns {code, now, refresh expiry, user epoch, log epoch, created, sub, username, scope, client, claims, [place]}
--   0 OK    the shown token was current; its successor is now
--   1 SAME  the shown token is the current one's parent, within the grace:
--           nothing changed, the successor is the same
--   11 KEPT the shown token is current, and a rotation made it within the grace:
--           nothing changed, it stays current
-- Returns {code, now, seq, chain, followers, members, epoch, primary_id}; see revoke
--   3 REVOKED    the session was revoked before, perhaps by an earlier copy of this request
--   5 REUSE      an older generation, or a wrong secret: the family is revoked now
--   6 ROLLBACK   a newer generation than Redis knows: the family is revoked now
-- Returns {code, now}; nothing changed
--   2 NONE       no such session: it expired, or this Redis, which takes writes,
--                never knew it
--   4 SUPERSEDED the user has logged out everywhere since
--   8 FOREIGN    the token was issued to another client
--   9 SCOPE      otherwise OK, SAME or KEPT, but the request asks for more scope than
--                was granted
--   10 KEY       the session is bound to another key, or the request has no proof of
--                the session's key
--   12 TOO LARGE the stored session may not fit into a token; checked before the
--                generation is
--
-- A rotation must not run after its caller has gone (late.lua): the client would go on
-- with a token that is now the parent, and after the grace that looks like theft.
local now = now_ms()
local h = open_head(KEYS[5], KEYS[6], ARGV[1], now)

local s = redis.call('HMGET', KEYS[1], 'gen', 'hash', 'prev', 'rot', 'abs', 'ue', 'cre', 'sub', 'user', 'scope', 'client', 'lst', 'claims', 'jkt', 'gr')
check_session(KEYS[1], s[8], s[2], s[3], s[1], s[4], s[5], s[6], s[7])
if not s[1] then
  if redis.call('EXISTS', KEYS[4]) == 1 then
    local n, members = followers(KEYS[7])
    return {3, now, h[5], h[6], n, members, h[1], primary_id()}
  end
  -- A write that changes nothing: what is missing here may be on the server that
  -- has taken this one's place. A replica refuses it, and with
  -- min-replicas-to-write so does a primary that was left alone; and a WAIT
  -- behind it finds out.
  redis.call('PEXPIRE', KEYS[7], math.max(redis.call('PTTL', KEYS[7]), 1))
  return {2, now}
end

-- Before all that could end the family: whom the token was not issued to has no say.
if not issued_to(s[11], ARGV[11]) then
  return {8, now}
end
-- RFC 9449 section 5. Neither has whoever does not hold the key: not even to end the
-- session, nor to bind one that is bound to nothing. A registered client has proven
-- who it is, so it may take another key, but none it may not.
local bound = s[14] or ''
if (ARGV[11] == '' and bound ~= ARGV[13]) or (bound ~= '' and ARGV[13] == '') then
  return {10, now}
end
-- Nothing changes for a token that could not be signed. The claims are text here: ":
-- stands once in each member, and perhaps within values, too.
local room, claims = tonumber(ARGV[14]), s[13] or ''
if room ~= 0 and (2 * #s[8] + #(s[10] or '') + #(s[11] or '') + #claims > room or
    (claims ~= '' and select(2, string.gsub(claims, '":', '')) > tonumber(ARGV[15]))) then
  return {12, now}
end
local excess = false
for name in string.gmatch(ARGV[12], '[^ ]+') do
  if not string.find(' ' .. (s[10] or '') .. ' ', ' ' .. name .. ' ', 1, true) then
    excess = true
  end
end

local user = user_epoch(KEYS[3])
local epoch = tonumber(user[1]) or 0
local session_epoch = tonumber(s[6])
if session_epoch < epoch and user[2] ~= ARGV[2] then
  -- The key stays until it expires: by it a copy of the login sees that the session is
  -- over, and does not make it anew.
  return {4, now}
end
epoch = math.max(epoch, session_epoch)

local gen, shown = tonumber(s[1]), tonumber(ARGV[3])
local rotated = tonumber(s[4])
-- The last rotation may have been made under a longer grace, by a replica whose setting
-- is another: its client was promised that one.
local within_grace = now - rotated <= math.max(tonumber(ARGV[8]), tonumber(s[15]) or 0)
local code
if shown == gen and ARGV[4] == s[2] then
  -- A login's first token was made by no rotation.
  code = (gen > 1 and within_grace) and 11 or 0
elseif shown == gen - 1 and ARGV[4] == s[3] and within_grace then
  code = 1
end
if code then
  if excess then
    return {9, now}
  end
  local expiry
  if code == 0 then
    local idle, abs = tonumber(ARGV[6]), tonumber(s[5])
    expiry = math.min(now + idle, abs)
    redis.call('HSET', KEYS[1], 'gen', gen + 1, 'hash', ARGV[5], 'prev', ARGV[4], 'rot', now, 'gr', ARGV[8])
    redis.call('PEXPIREAT', KEYS[1], expiry)
    if expiry > (tonumber(s[12]) or 0) then
      local listed = listed_until(expiry, idle, abs)
      redis.call('HSET', KEYS[1], 'lst', listed)
      redis.call('ZADD', KEYS[2], listed, ARGV[2])
      outlive(KEYS[2], now, listed)
    end
  else
    expiry = now + redis.call('PTTL', KEYS[1])
    if rotated > now then
      -- The clock was set back since. The grace begins now, or it would last until the
      -- clock had caught up.
      redis.call('HSET', KEYS[1], 'rot', now)
    end
  end
  stretch(KEYS[5], h, tonumber(ARGV[7]), 0)
  -- The login made both keys last until the session's maximum plus the access lifetime of
  -- then. If that was raised since, the token that is granted now may live longer.
  local dead = now + h[2] + tonumber(ARGV[9])
  if user[1] then
    outlive(KEYS[3], now, dead)
  end
  outlive(KEYS[5], now, dead)
  local place = ARGV[10] == '1' and status_lists().place_of_session(KEYS[1], KEYS[9], KEYS[5], h, ARGV[2], now, tonumber(ARGV[9])) or nil
  return {code, now, expiry, epoch, h[1], s[7], s[8], s[9] or '', s[10] or '', s[11] or '', s[13] or '', place}
end

-- The DEL goes first: a Redis out of memory then lets the rest through, and a
-- theft is never left unanswered for want of memory.
local lists = h[4] and status_lists()
local places = lists and lists.places_of(KEYS[1], KEYS[9], h, ARGV[2], '', false)
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[2])
stretch(KEYS[5], h, tonumber(ARGV[7]), 0)
local keep = h[2] + tonumber(ARGV[9])
local seq, chain, entry = append_log(KEYS[5], h, KEYS[6], now, keep, 'sid', ARGV[2])
redis.call('SET', KEYS[4], string.match(KEYS[2], '([^:]+)$'), 'PX', keep)
if lists then
  lists.mark_session(KEYS[8], KEYS[9], places, ARGV[2], now, now + keep)
end
tell(entry)
local n, members = followers(KEYS[7])
return {shown > gen and 6 or 5, now, seq, chain, n, members, h[1], primary_id()}
