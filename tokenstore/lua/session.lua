-- In front of scripts that judge a refresh token by the stored session.

-- check_session raises an error unless the session is stored as this version does it. It
-- takes the key, the sub, the hash, the hash before that, and the fields that are numbers,
-- the generation first: only the first has no hash before. What cannot be read
-- is an outage: judged as it is, it would look like a session that is over, or like theft.
local function check_session(key, sub, hash, prev, gen, ...)
  local readable = sub and sub ~= '' and hash and #hash == 32
    and string.find(gen or '', '^%d+$') and (gen == '1' or (prev and #prev == 32))
  for i = 1, select('#', ...) do
    readable = readable and string.find(select(i, ...) or '', '^%d+$')
  end
  if not readable and redis.call('EXISTS', key) == 1 then
    error('a stored session cannot be read: give every replica the same version')
  end
end
