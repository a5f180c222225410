-- Around every script that sets what another request may set differently. The last of
-- KEYS, which no header lists, is named by the request's nonce and keeps the answer until
-- the deadline. A copy of the request returns that answer and changes nothing; after the
-- deadline it is late.
local function once(run)
  local kept = table.remove(KEYS)
  local answer = redis.call('GET', kept)
  if answer then
    -- A write that changes nothing: a WAIT behind it then waits for the first copy's, too.
    redis.call('PEXPIREAT', kept, deadline + 1000)
    return cjson.decode(answer)
  end
  answer = run()
  redis.call('SET', kept, cjson.encode(answer), 'PXAT', deadline + 1000)
  return answer
end
