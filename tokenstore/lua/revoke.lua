-- revoke: ends one session: its refresh key, and by the denylist every access
-- token minted from it.
--
-- KEYS 1 rt:<sid>  2 us:<uid>  3 deny:<sid>  4 head  5 log  [6 deny:<jti>]
-- ARGV 1 epoch for a new head  2 sid  3 access ms  4 pad ms
--      5 the sub that must own the session, or '' for whoever holds its token
--      6 expiry (ms) of the access token jti, if KEYS 6 is given
-- Returns {0, now, seq}: revoked; seq is its log entry, the same when asked again
--         {1, now, 0}:   that user has no such session
local now = now_ms()
local h = open_head(KEYS[4], KEYS[5], ARGV[1], now)

if ARGV[5] ~= '' and redis.call('HGET', KEYS[1], 'sub') ~= ARGV[5] then
  return {1, now, 0}
end

-- The DEL goes first: a Redis out of memory then lets the rest through.
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[2])
stretch(KEYS[4], h, tonumber(ARGV[3]), 0)
local keep = h[2] + tonumber(ARGV[4])

local seq = redis.call('GET', KEYS[3])
if not seq then
  seq = append_log(KEYS[4], KEYS[5], now, keep, 'sid', ARGV[2], now + keep, '', '')
  redis.call('SET', KEYS[3], seq, 'PX', keep)
end
if KEYS[6] then
  local till = tonumber(ARGV[6]) + tonumber(ARGV[4])
  if till > now then
    redis.call('SET', KEYS[6], seq, 'PXAT', till)
  end
end
return {0, now, tonumber(seq)}
