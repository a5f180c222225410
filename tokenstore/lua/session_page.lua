-- session_page: a part of a user's list of sessions, those that expire last first. It
-- changes nothing.
--
-- KEYS 1 us:<uid>  2 ue:<uid>
-- ARGV 1 how many at most
--      2 sid  3 score of the session after which to go on, both '' to begin
-- Returns {now, user epoch, excepted sid, {sid, score, sid, score, ...}}
local from = 0
if ARGV[2] ~= '' then
  if redis.call('ZSCORE', KEYS[1], ARGV[2]) == ARGV[3] then
    from = redis.call('ZREVRANK', KEYS[1], ARGV[2]) + 1
  else
    -- It ended or was refreshed meanwhile: go on where it was.
    from = redis.call('ZCOUNT', KEYS[1], ARGV[3], '+inf')
  end
end
local user = user_epoch(KEYS[2])
return {now_ms(), user[1] or '0', user[2] or '',
  redis.call('ZREVRANGE', KEYS[1], from, from + ARGV[1] - 1, 'WITHSCORES')}
