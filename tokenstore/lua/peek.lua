-- peek: what would become of a refresh token? It changes nothing.
--
-- KEYS 1 rt:<sid>  2 ue:<uid>
-- ARGV 1 sid  2 gen shown  3 SHA-256 of the secret shown  4 grace ms
-- Returns {code, now, expiry, created, sub, username, scope, client, claims, jkt}
--   0 the current token, be it that it may not rotate yet
--   1 its parent, within the grace
--         {2, now}: neither, or the session is over
local now = now_ms()
local s = redis.call('HMGET', KEYS[1], 'gen', 'hash', 'prev', 'rot', 'ue', 'cre', 'sub', 'user', 'scope', 'client', 'claims', 'jkt', 'gr')
check_session(KEYS[1], s[7], s[2], s[3], s[1], s[4], s[5], s[6])
if not s[1] then
  return {2, now}
end
local user = user_epoch(KEYS[2])
if tonumber(s[5]) < (tonumber(user[1]) or 0) and user[2] ~= ARGV[1] then
  return {2, now}
end
local gen, shown, code = tonumber(s[1]), tonumber(ARGV[2]), 2
if shown == gen and ARGV[3] == s[2] then
  code = 0
elseif shown == gen - 1 and ARGV[3] == s[3] and now - tonumber(s[4]) <= math.max(tonumber(ARGV[4]), tonumber(s[13]) or 0) then
  code = 1
end
if code == 2 then
  return {2, now}
end
return {code, now, now + redis.call('PTTL', KEYS[1]), s[6], s[7], s[8] or '', s[9] or '', s[10] or '', s[11] or '', s[12] or ''}
