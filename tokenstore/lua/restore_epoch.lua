-- restore_epoch: puts back a user's epoch that Redis lost in a failover, and
-- logs it. A follower that still knew it calls this.
--
-- Where Redis has an older epoch that excepts another session, or none, that may be a
-- logout of since: it must end the session excepted here. The exception is dropped
-- then, under a number of its own.
--
-- KEYS 1 ue:<uid>  2 us:<uid>  3 head  4 log  5 invalid  6 idx:<uid>
-- ARGV 1 epoch for a new head  2 uid  3 the epoch known  4 its excepted sid or ''
--      5 session max ms  6 access ms  7 pad ms
-- Returns {0, now} restored   {1, now} Redis knows this epoch, or a later one
local now = now_ms()
local h = open_head(KEYS[3], KEYS[4], ARGV[1], now)
local epoch = tonumber(ARGV[3])
local except = ARGV[4]
local u = redis.call('HMGET', KEYS[1], 'e', 'x')
local known = tonumber(u[1]) or 0
if known >= epoch then
  return {1, now}
end
if known > 0 and u[2] ~= except then
  epoch, except = epoch + 1, ''
end
redis.call('UNLINK', KEYS[2])
stretch(KEYS[3], h, tonumber(ARGV[6]), tonumber(ARGV[5]))
local pad = tonumber(ARGV[7])
local keep = h[2] + pad
tell((select(3, append_log(KEYS[3], h, KEYS[4], now, keep, 'user', ARGV[2], epoch, except))))
redis.call('HSET', KEYS[1], 'e', epoch, 'x', except)
outlive(KEYS[1], now, now + h[3] + h[2] + pad)
if h[4] then
  status_lists().mark_user(KEYS[5], KEYS[6], h, except, now)
end
return {0, now}
