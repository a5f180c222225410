-- revoke_user: ends every session of a user by one write, however many there
-- are: the user's epoch goes up, and tokens of an older epoch are dead. With status lists
-- it is one more for each session that got an access token within the last lifetime.
--
-- KEYS 1 ue:<uid>  2 us:<uid>  3 head  4 log  5 members
--      6 invalid  7 idx:<uid>  [8 rt:<excepted sid>]
-- ARGV 1 epoch for a new head  2 uid  3 session max ms  4 access ms  5 pad ms
--      6 logins whose credentials were read up to this time (ms) are refused; 0 for none
--      7 excepted sid, if KEYS 8 is given
-- Returns {0, now, seq, chain, followers, members, epoch, primary_id, sids}; see revoke;
--           sids are sessions that have ended, at most 1,000 of them, those that would
--           expire last: the caller shortens the life of their refresh keys, which this
--           script does not declare
--         {1, now}: the excepted session is not alive
--
-- ue is a hash: e epoch, x excepted sid, c credentials' cut-off.
local now = now_ms()
local h = open_head(KEYS[3], KEYS[4], ARGV[1], now)

local u = user_epoch(KEYS[1])
local epoch = tonumber(u[1]) or 0

local except, left = '', false
if KEYS[8] then
  except = ARGV[7]
  local mine = tonumber((redis.call('HGET', KEYS[8], 'ue')))
  if not mine or (mine < epoch and u[2] ~= except) then
    return {1, now}
  end
  epoch = math.max(epoch, mine)
  left = redis.call('ZSCORE', KEYS[2], except)
end
epoch = epoch + 1

local ended = {}
for _, sid in ipairs(redis.call('ZREVRANGE', KEYS[2], 0, 999)) do
  if sid ~= except then
    ended[#ended + 1] = sid
  end
end
redis.call('UNLINK', KEYS[2])
stretch(KEYS[3], h, tonumber(ARGV[4]), tonumber(ARGV[3]))
local pad = tonumber(ARGV[5])
local keep = h[2] + pad
local seq, chain, entry = append_log(KEYS[3], h, KEYS[4], now, keep, 'user', ARGV[2], epoch, except)
local cut, changed = tonumber(u[3]) or 0, tonumber(ARGV[6])
if changed > cut or (changed > 0 and set_back(cut, now)) then
  cut = changed
end
redis.call('HSET', KEYS[1], 'e', epoch, 'x', except, 'c', cut)
outlive(KEYS[1], now, now + h[3] + h[2] + pad)
outlive(KEYS[3], now, now + h[3] + h[2] + pad)
if h[4] then
  status_lists().mark_user(KEYS[6], KEYS[7], h, except, now)
end
if KEYS[8] then
  redis.call('HSET', KEYS[8], 'ue', epoch)
  if left then
    redis.call('ZADD', KEYS[2], left, except)
    redis.call('PEXPIREAT', KEYS[2], left)
  end
end
tell(entry)
local n, members = followers(KEYS[5])
return {0, now, seq, chain, n, members, h[1], primary_id(), ended}
