-- revoke_user: ends every session of a user by one write, however many there
-- are: the user's epoch goes up, and tokens of an older epoch are dead. With status lists
-- it is one more for each session that got an access token within the last lifetime.
--
-- KEYS 1 ue:<uid>  2 us:<uid>  3 head  4 log  5 members
--      6 invalid  7 idx:<uid>  [8 rt:<excepted sid>]
-- ARGV 1 epoch for a new head  2 uid  3 nonce of this request
--      4 session max ms  5 access ms  6 pad ms
--      7 logins whose credentials were read up to this time (ms) are refused; 0 for none
--      8 excepted sid, if KEYS 8 is given
-- Returns {0, now, seq, chain, members, epoch, primary_id}, as revoke returns them
--         {1, now}: the excepted session is not alive
--
-- ue is a hash: e epoch, x excepted sid, c credentials' cut-off, n nonce.
-- The nonce makes a re-sent request the same request.
local now = now_ms()
local h = open_head(KEYS[3], KEYS[4], ARGV[1], now)

local u = redis.call('HMGET', KEYS[1], 'e', 'x', 'c', 'n')
if u[4] == ARGV[3] then
  -- A write of its own: a WAIT behind it then waits for the first one too.
  redis.call('HSET', KEYS[1], 'n', ARGV[3])
  local seq, chain = head_mark(KEYS[3])
  return {0, now, seq, chain, redis.call('HGETALL', KEYS[5]), h[1], primary_id()}
end
local epoch = tonumber(u[1]) or 0

local except, left = '', false
if KEYS[8] then
  except = ARGV[8]
  local mine = tonumber((redis.call('HGET', KEYS[8], 'ue')))
  if not mine or (mine < epoch and u[2] ~= except) then
    return {1, now}
  end
  epoch = math.max(epoch, mine)
  left = redis.call('ZSCORE', KEYS[2], except)
end
epoch = epoch + 1

redis.call('UNLINK', KEYS[2])
stretch(KEYS[3], h, tonumber(ARGV[5]), tonumber(ARGV[4]))
local pad = tonumber(ARGV[6])
local keep = h[2] + pad
local seq, chain = append_log(KEYS[3], KEYS[4], now, keep, 'user', ARGV[2], epoch, except)
local cut = math.max(tonumber(u[3]) or 0, tonumber(ARGV[7]))
redis.call('HSET', KEYS[1], 'e', epoch, 'x', except, 'c', cut, 'n', ARGV[3])
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
return {0, now, seq, chain, redis.call('HGETALL', KEYS[5]), h[1], primary_id()}
