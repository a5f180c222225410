-- Shared by the scripts that revoke: one entry appended to the shard's log.
--
-- The entry's stream id is seq-0, so seq is contiguous and a reader can ask
-- for "all after seq". chain = SHA-1(chain before | entry): epoch, seq and
-- chain together name exactly one prefix of one history.
--
-- Entries are dropped once they are older than keep (ms), and so is the log.
local function append_log(head, log, now, keep, kind, id, till, epoch, except)
  local seq = redis.call('HINCRBY', head, 'seq', 1)
  local line = string.format('%s|%.0f|%s|%s|%.0f|%s|%s',
    redis.call('HGET', head, 'chain'), seq, kind, id, till, epoch, except)
  redis.call('HSET', head, 'chain', redis.sha1hex(line))
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
  return seq
end
