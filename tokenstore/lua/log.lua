-- Shared by the scripts that revoke: one entry appended to the shard's log.
--
-- An entry's stream id is seq-0, so seq is contiguous and a reader can ask for
-- "all after seq". Its one field, v, is "chain|line":
--
--   line   kind|id|until|keep            of a session (sid) or a signing key (key)
--          user|id|until|keep|epoch|except   of a user; except may be empty
--          until and keep in ms: the entry was made at until - keep
--   chain  the first 16 hex digits of SHA-1(chain before|seq|line). The chain
--          before the first entry is the head's epoch.
--
-- So epoch, seq and chain name exactly one prefix of one history, also after a
-- failover put other entries in the place of lost ones, and a reader can check that
-- each entry follows the one it read before.
--
-- Entries are dropped once they are older than keep (ms), and so is the log.
-- Returns seq and chain.
local function append_log(head, log, now, keep, kind, id, epoch, except)
  local seq = redis.call('HINCRBY', head, 'seq', 1)
  local line = string.format('%s|%s|%.0f|%.0f', kind, id, now + keep, keep)
  if kind == 'user' then
    line = string.format('%s|%.0f|%s', line, epoch, except)
  end
  local before = redis.call('HGET', head, 'chain')
  local chain = string.sub(redis.sha1hex(string.format('%s|%.0f|%s', before, seq, line)), 1, 16)
  redis.call('HSET', head, 'chain', chain)
  redis.call('XADD', log, string.format('%.0f-0', seq), 'v', chain .. '|' .. line)
  -- Each append makes one entry and drops up to three: the log stays as short
  -- as its age allows without ever paying for it at once.
  local first = nil
  for _, entry in ipairs(redis.call('XRANGE', log, '-', '+', 'COUNT', 3)) do
    local till, kept = string.match(entry[2][2], '^%x*|%a+|[^|]*|(%d+)|(%d+)')
    if till and tonumber(till) - tonumber(kept) + keep < now then
      first = entry[1]
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
