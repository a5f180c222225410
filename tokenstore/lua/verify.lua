-- verify: may an access token whose signature was checked still be accepted?
--
-- KEYS 1 deny:<jti>  2 deny:<sid>  3 ue:<uid>  4 head  5 log  6 dead keys
-- ARGV 1 epoch for a new head  2 sid  3 token's log epoch  4 token's user epoch
--      5 token's expiry (ms)  6 id of the key that signed it
-- Returns {code, now}
--   0 accepted  1 jti denied  2 sid denied  3 older user epoch
--   4 issued under another history of this shard  5 expired by Redis time
--   6 signed with a key that was revoked
local now = now_ms()
local h = open_head(KEYS[4], KEYS[5], ARGV[1], now)
if h[1] ~= ARGV[3] then
  return {4, now}
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  return {1, now}
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  return {2, now}
end
if redis.call('HEXISTS', KEYS[6], ARGV[6]) == 1 then
  return {6, now}
end
local u = user_epoch(KEYS[3])
if u[1] and tonumber(ARGV[4]) < tonumber(u[1]) and u[2] ~= ARGV[2] then
  return {3, now}
end
if tonumber(ARGV[5]) <= now then
  return {5, now}
end
return {0, now}
