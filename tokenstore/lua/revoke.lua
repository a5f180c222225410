-- revoke: ends sessions: their refresh keys, and by the denylist every access token minted
-- from them. All sessions are of one slot, unless this is no Cluster.
--
-- KEYS 1 rt:<sid>  2 us:<uid>  3 deny:<sid>  4 head  5 log  6 members
--      7 invalid  8 idx:<uid>  9 deny:<jti>, or 3 again if no access token was shown; of the
--      first session, then those of the next ...
-- ARGV 1 epoch for a new head  2 access ms  3 pad ms
--      4 the follower of the caller's process, or '': where it is the only one, nobody is told
--      5 sid
--      6 the sub that must own the session, or '' for whoever holds its token
--      7 '1': only a session of the client in ARGV 8
--      8 that client, as issued_to takes it
--      9 the place that an access token names which was shown, or ''
--      10 expiry (ms) of the access token jti, or 0; from 5 on of the first session, then
--      those of the next ...
-- Returns {now, primary_id or '', {session, next sessions}}
--
-- A session is answered by one of
--   {0, seq, chain, followers, members, epoch, keep}: revoked; whoever has applied the log up
--           to seq and chain has applied it. They name its own entry, made at now and kept
--           for keep ms; or when it is asked for again the head of the log, and keep is 0.
--           followers is how many there are, 2 standing for any number above 1; members is
--           the table of them, of this primary and history, empty if there is more than one
--   {1}: that user has no such session
--   {2}: it is another client's
--   {3, error}: Redis did not do it, or not all of it. Where it did nothing at all, the error
--           is the script's
--
-- deny:<sid> and deny:<jti> hold the uid.
local now = now_ms()
local news = {}

local function revoke(k, a)
  local rt, us, deny, head, log, members, invalid, living, deny_jti = unpack(KEYS, k + 1, k + 9)
  local sid, owner, only, client, shown, expiry = unpack(ARGV, a + 1, a + 6)
  local h = open_head(head, log, ARGV[1], now)
  local uid = string.match(us, '([^:]+)$')
  local denied = redis.call('GET', deny)
  if owner ~= '' then
    -- A session that is over has no sub any more; its denial tells whose it was.
    local sub = redis.call('HGET', rt, 'sub')
    if sub ~= owner and (sub or denied ~= uid) then
      return {1}
    end
  end
  if only == '1' then
    local s = redis.call('HMGET', rt, 'sub', 'client')
    if s[1] and not issued_to(s[2], client) then
      return {2}
    end
  end

  -- The DEL goes first: a Redis out of memory then lets the rest through.
  local lists = h[4] and status_lists()
  local places = lists and lists.places_of(rt, living, h, sid, shown, denied)
  redis.call('DEL', rt)
  redis.call('ZREM', us, sid)
  stretch(head, h, tonumber(ARGV[2]), 0)
  local keep = h[2] + tonumber(ARGV[3])

  local n, table_of_one = followers(members)
  local made = 0
  if denied then
    -- A write of its own: a WAIT behind it then waits for the first one too.
    redis.call('PEXPIRE', deny, keep)
  else
    local _, _, entry = append_log(head, h, log, now, keep, 'sid', sid)
    redis.call('SET', deny, uid, 'PX', keep)
    made = keep
    if n ~= 1 or table_of_one[1] ~= ARGV[4] then
      news[#news + 1] = entry
    end
  end
  if lists then
    lists.mark_session(invalid, living, places, sid, now, now + keep)
  end
  if expiry ~= '0' then
    local till = tonumber(expiry) + tonumber(ARGV[3])
    if till > now then
      redis.call('SET', deny_jti, uid, 'PXAT', till)
    end
  end
  return {0, h[5], h[6], n, table_of_one, h[1], made}
end

local sessions, done, failure = {}, false, nil
for i = 1, #KEYS / 9 do
  local ok, answer = pcall(revoke, 9 * (i - 1), 4 + 6 * (i - 1))
  if not ok then
    failure = failure or answer
    answer = {3, type(answer) == 'table' and answer.err or tostring(answer)}
  end
  sessions[i], done = answer, done or ok
end
if not done then
  error(failure)
end
if #news > 0 then
  tell(table.concat(news, '\n'))
end
-- Asked last, for all of them: a name never comes back once another server had taken over.
return {now, primary_id(), sessions}
