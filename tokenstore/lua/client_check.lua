-- client_check: is this a client's secret, and what may the client do? If a token is
-- to be issued to the client for itself, with what it carries, all of one moment: the
-- token is dead once the client's epoch goes up after its secret was replaced.
--
-- KEYS 1 client:<id>  2 ue:<uid of the client>  3 head  4 log  [5 idx:<uid>]
-- ARGV 1 epoch for a new head  2 SHA-256 of the secret shown  3 access ms  4 pad ms
--      5 '1': a token is to be issued; else nothing is written
-- With KEYS 5 the token gets a place in a status list.
-- Returns {0, now, grants, scopes, audiences, claims, introspect, [user epoch, log epoch, [place]]},
--           the last three if a token is to be issued
--         {1, now}: no such client   {2, now}: another secret
local now = now_ms()
local c = redis.call('HMGET', KEYS[1], 'hash', 'old', 'until', 'grants', 'scopes', 'aud', 'claims', 'intro')
if not c[1] then
  return {1, now}
end
if c[1] ~= ARGV[2] and not (c[2] == ARGV[2] and now < tonumber(c[3])) then
  return {2, now}
end
if ARGV[5] ~= '1' then
  return {0, now, c[4], c[5], c[6], c[7], c[8]}
end
local h = open_head(KEYS[3], KEYS[4], ARGV[1], now)
stretch(KEYS[3], h, tonumber(ARGV[3]), 0)
local epoch = user_epoch(KEYS[2])[1]
local all_dead = now + h[3] + h[2] + tonumber(ARGV[4])
if epoch then
  outlive(KEYS[2], now, all_dead)
end
outlive(KEYS[3], now, all_dead)
epoch = epoch or '0'
local place = KEYS[5] and status_lists().place_of_client(KEYS[1], KEYS[5], KEYS[3], h, epoch, now, tonumber(ARGV[4])) or nil
return {0, now, c[4], c[5], c[6], c[7], c[8], epoch, h[1], place}
