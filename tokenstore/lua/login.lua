-- login: makes one session (its refresh key) for a user.
--
-- KEYS 1 rt:<sid>  2 us:<uid>  3 ue:<uid>  4 head  5 log  6 deny:<sid>  [7 idx:<uid>]
-- ARGV 1 epoch for a new head        2 sid
--      3 SHA-256 of the secret       4 sub
--      5 username, or '' if it is the sub
--      6 scope  7 client  8 device  9 address
--      10 idle ms  11 session max ms  12 access ms  13 pad ms
--      14 time (ms) at which the credentials were read
--      15 claims of the account
--      16 thumbprint of the key that the tokens are bound to, or ''
--      17 how many sessions the user may have, or 0 for any number
--      18.. sids of sessions that the caller ends after this one is there: they do not count
-- With KEYS 7 the session gets a place in a status list.
-- Returns {0, now, refresh expiry, user epoch, log epoch, created, place or 0, surplus}
--           surplus are sids of the user's sessions that are too many now: the caller
--           ends them
--         {1, now}: the credentials were changed or disabled after they were read; or this
--           is a copy of a login whose session has ended, or has been refreshed, since
--
-- A copy of a login whose session is there returns that session and writes nothing.
local now = now_ms()
local h = open_head(KEYS[4], KEYS[5], ARGV[1], now)

-- surplus returns the sids of sessions beyond the user's limit, never the caller's own.
-- The sessions that expire last may stay; those before them are too many. It returns at
-- most the four of these that expire last, so that a login stays cheap after the limit was
-- lowered. Logins at the same moment thereby get different ones, and later logins get the
-- rest.
local function surplus(list, limit, sid, now)
  local sids = {}
  local expired = redis.call('ZCOUNT', list, '-inf', now)
  local over = redis.call('ZCARD', list) - expired - limit
  for i = 18, #ARGV do
    local ends = redis.call('ZSCORE', list, ARGV[i])
    if ends and tonumber(ends) > now then
      over = over - 1
    end
  end
  if limit > 0 and over > 0 then
    local most = math.min(over, 4)
    for _, other in ipairs(redis.call('ZRANGE', list, expired + over - most, expired + over)) do
      if other ~= sid and #sids < most then
        sids[#sids + 1] = other
      end
    end
  end
  return sids
end

local ue = user_epoch(KEYS[3])
local read, cut = tonumber(ARGV[14]), tonumber(ue[3]) or 0
if read <= cut and (read > now or not set_back(cut, now)) then
  return {1, now}
end
if redis.call('EXISTS', KEYS[6]) == 1 then
  return {1, now}
end
local s = redis.call('HMGET', KEYS[1], 'hash', 'ue', 'cre', 'idx')
if s[1] then
  local over = tonumber(s[2]) < (tonumber(ue[1]) or 0) and ue[2] ~= ARGV[2]
  if over or s[1] ~= ARGV[3] then
    return {1, now}
  end
  local place = KEYS[7] and tonumber(string.match(s[4] or '', '(%d+)$')) or 0
  return {0, now, now + redis.call('PTTL', KEYS[1]), s[2], h[1], s[3], place, surplus(KEYS[2], tonumber(ARGV[17]), ARGV[2], now)}
end
local epoch = ue[1] or '0'

local idle, max, access, pad = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local abs = now + max
local expiry = math.min(now + idle, abs)

local listed = listed_until(expiry, idle, abs)
local f = {'sub', ARGV[4], 'gen', 1, 'hash', ARGV[3], 'cre', now, 'rot', now, 'abs', abs, 'ue', epoch, 'lst', listed}
local optional = {user = ARGV[5], scope = ARGV[6], client = ARGV[7], dev = ARGV[8], ip = ARGV[9], claims = ARGV[15], jkt = ARGV[16]}
for name, value in pairs(optional) do
  if value ~= '' then
    f[#f + 1] = name
    f[#f + 1] = value
  end
end
redis.call('HSET', KEYS[1], unpack(f))
redis.call('PEXPIREAT', KEYS[1], expiry)

drop_expired(KEYS[2], now)
redis.call('ZADD', KEYS[2], listed, ARGV[2])
outlive(KEYS[2], now, listed)

stretch(KEYS[4], h, access, max)
local all_dead = now + h[3] + h[2] + pad
if ue[1] then
  outlive(KEYS[3], now, all_dead)
end
outlive(KEYS[4], now, all_dead)
local place = KEYS[7] and status_lists().place_of_session(KEYS[1], KEYS[7], KEYS[4], h, ARGV[2], now, pad) or 0
return {0, now, expiry, epoch, h[1], now, place, surplus(KEYS[2], tonumber(ARGV[17]), ARGV[2], now)}
