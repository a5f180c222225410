-- revoke: ends one session: its refresh key, and by the denylist every access
-- token minted from it.
--
-- KEYS 1 rt:<sid>  2 us:<uid>  3 deny:<sid>  4 head  5 log  6 members
--      7 invalid  8 idx:<uid>  [9 deny:<jti>]
-- ARGV 1 epoch for a new head  2 sid  3 access ms  4 pad ms
--      5 the sub that must own the session, or '' for whoever holds its token
--      6 '1': only a session of the client in ARGV 7
--      7 that client, as issued_to takes it
--      8 the place that an access token names which was shown, or ''
--      9 '1': tell the primary's id, as the last element of the reply
--      10 the follower of the caller's process, or '': where it is the only one, nobody is told
--      11 expiry (ms) of the access token jti, if KEYS 9 is given
-- Returns {0, now, seq, chain, followers, members, epoch, keep, primary_id or ''}: revoked;
--           whoever has applied the log up to seq and chain has applied it. They name its
--           own entry, made at now and kept for keep ms; or when it is asked for again the
--           head of the log, and keep is 0. followers is how many there are; members is the
--           table of them, of this primary and history, empty if there is more than one
--         {1, now, primary_id or ''}: that user has no such session
--         {2, now, primary_id or ''}: it is another client's
--
-- deny:<sid> and deny:<jti> hold the uid.
local now = now_ms()
local function who()
  return ARGV[9] == '1' and primary_id() or ''
end
local h = open_head(KEYS[4], KEYS[5], ARGV[1], now)

local uid = string.match(KEYS[2], '([^:]+)$')
local denied = redis.call('GET', KEYS[3])
if ARGV[5] ~= '' then
  -- A session that is over has no sub any more; its denial tells whose it was.
  local sub = redis.call('HGET', KEYS[1], 'sub')
  if sub ~= ARGV[5] and (sub or denied ~= uid) then
    return {1, now, who()}
  end
end

if ARGV[6] == '1' then
  local s = redis.call('HMGET', KEYS[1], 'sub', 'client')
  if s[1] and not issued_to(s[2], ARGV[7]) then
    return {2, now, who()}
  end
end

-- The DEL goes first: a Redis out of memory then lets the rest through.
local lists = h[4] and status_lists()
local places = lists and lists.places_of(KEYS[1], KEYS[8], h, ARGV[2], ARGV[8], denied)
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[2])
stretch(KEYS[4], h, tonumber(ARGV[3]), 0)
local keep = h[2] + tonumber(ARGV[4])

local n, members = followers(KEYS[6])
local seq, chain
local made = 0
if denied then
  -- A write of its own: a WAIT behind it then waits for the first one too.
  redis.call('PEXPIRE', KEYS[3], keep)
  seq, chain = head_mark(KEYS[4])
else
  local alone = n == 1 and members[1] == ARGV[10]
  seq, chain = append_log(KEYS[4], KEYS[5], now, keep, 'sid', ARGV[2], nil, nil, alone)
  made = keep
  redis.call('SET', KEYS[3], uid, 'PX', keep)
end
if lists then
  lists.mark_session(KEYS[7], KEYS[8], places, ARGV[2], now, now + keep)
end
if KEYS[9] then
  local till = tonumber(ARGV[11]) + tonumber(ARGV[4])
  if till > now then
    redis.call('SET', KEYS[9], uid, 'PXAT', till)
  end
end
return {0, now, seq, chain, n, members, h[1], made, who()}
