-- Shared by the scripts that revoke: one entry appended to the shard's log.
--
-- The entry's stream id is seq-0, so seq is contiguous and a reader can ask
-- for "all after seq". chain = the first 16 hex digits of SHA-1(chain before |
-- entry), and starts as the epoch: epoch, seq and chain together name exactly
-- one prefix of one history, also after a failover put other entries in the
-- place of lost ones. A reader computes the same.
--
-- Entries are dropped once they are older than keep (ms), and so is the log.
-- Returns seq and chain.
local function append_log(head, log, now, keep, kind, id, till, epoch, except)
  local seq = redis.call('HINCRBY', head, 'seq', 1)
  local line = string.format('%s|%.0f|%s|%s|%.0f|%s|%s',
    redis.call('HGET', head, 'chain'), seq, kind, id, till, epoch, except)
  local chain = string.sub(redis.sha1hex(line), 1, 16)
  redis.call('HSET', head, 'chain', chain)
  redis.call('XADD', log, string.format('%.0f-0', seq),
    'k', kind, 'i', id, 'u', till, 't', now, 'e', epoch, 'x', except)
  -- Each append makes one entry and drops up to three: the log stays as short
  -- as its age allows without ever paying for it at once.
  local old = redis.call('XRANGE', log, '-', '+', 'COUNT', 3)
  local first = nil
  for _, entry in ipairs(old) do
    local f = entry[2]
    for i = 1, #f, 2 do
      if f[i] == 't' and tonumber(f[i + 1]) + keep < now then
        first = entry[1]
      end
    end
  end
  if first then
    local n = tonumber(string.match(first, '^(%d+)')) + 1
    redis.call('XTRIM', log, 'MINID', string.format('%.0f-0', n))
  end
  redis.call('PEXPIRE', log, keep)
  return seq, chain
end

-- head_mark returns seq and chain of the last entry. A revocation that is asked for
-- again is answered with it: it was logged before, in this history, so whoever has
-- applied the log up to this mark has applied its entry too. The mark of its own entry
-- would do as well, but could only be confirmed by reading the log from there on.
local function head_mark(head)
  local m = redis.call('HMGET', head, 'seq', 'chain')
  return tonumber(m[1]), m[2]
end
