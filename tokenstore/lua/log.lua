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
--
-- Followers are told of the entry at once, unless quiet: "head|epoch of the head|seq|chain|line"
-- is published on lk:log. A follower that is not reached learns of it when it renews. So
-- nothing is lost where PUBLISH is forbidden, but time.
-- Returns seq and chain.
local function append_log(head, log, now, keep, kind, id, epoch, except, quiet)
  local last = redis.call('HMGET', head, 'seq', 'chain', 'epoch')
  local seq = tonumber(last[1]) + 1
  local n = string.format('%d', seq)
  local line = string.format('%s|%s|%d|%d', kind, id, now + keep, keep)
  if kind == 'user' then
    line = string.format('%s|%d|%s', line, epoch, except)
  end
  local chain = string.sub(redis.sha1hex(last[2] .. '|' .. n .. '|' .. line), 1, 16)
  redis.call('HSET', head, 'seq', n, 'chain', chain)
  redis.call('XADD', log, n .. '-0', 'v', chain .. '|' .. line)
  if not quiet then
    redis.pcall('PUBLISH', 'lk:log', table.concat({head, last[3], n, chain, line}, '|'))
  end
  -- Every sixteenth append drops up to 48 old entries, so the log stays as short as its age
  -- allows, and no append pays for all of it. To look at the first entry costs as much as
  -- to append one.
  if seq % 16 == 0 then
    local first = nil
    for _, count in ipairs({1, 48}) do
      for _, entry in ipairs(redis.call('XRANGE', log, '-', '+', 'COUNT', count)) do
        local till, kept = string.match(entry[2][2], '^%x*|%a+|[^|]*|(%d+)|(%d+)')
        if till and tonumber(till) - tonumber(kept) + keep < now then
          first = entry[1]
        end
      end
      if not first then
        break
      end
    end
    if first then
      local kept = tonumber(string.match(first, '^(%d+)')) + 1
      redis.call('XTRIM', log, 'MINID', string.format('%.0f-0', kept))
    end
  end
  redis.call('PEXPIRE', log, keep)
  return seq, chain
end

-- followers returns how many followers there are, and the table of them if there is one
-- at most. If there are more, the caller has to wait for them and read the table again.
local function followers(members)
  local n = redis.call('HLEN', members)
  return n, n > 1 and {} or redis.call('HGETALL', members)
end

-- head_mark returns seq and chain of the last entry. A revocation that is asked for
-- again is answered with it: it was logged before, in this history, so whoever has
-- applied the log up to this mark has applied its entry too. The mark of its own entry
-- would do as well, but could only be confirmed by reading the log from there on.
local function head_mark(head)
  local m = redis.call('HMGET', head, 'seq', 'chain')
  return tonumber(m[1]), m[2]
end
