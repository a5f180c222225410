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
-- Entries are dropped once they are older than keep (ms). The log expires between keep and
-- twice keep after its last entry: so its expiry need not be set with each one.
--
-- h is what open_head has returned; append_log keeps it in step.
-- Returns seq, chain, and what tell takes.
local function append_log(head, h, log, now, keep, kind, id, epoch, except)
  local seq = h[5] + 1
  local n = string.format('%d', seq)
  local line = string.format('%s|%s|%d|%d', kind, id, now + keep, keep)
  if kind == 'user' then
    line = string.format('%s|%d|%s', line, epoch, except)
  end
  local chain = string.sub(redis.sha1hex(h[6] .. '|' .. n .. '|' .. line), 1, 16)
  local expires = h[7] < now + keep
  if expires then
    h[7] = now + 2 * keep
    redis.call('HSET', head, 'seq', n, 'chain', chain, 'till', h[7])
  else
    redis.call('HSET', head, 'seq', n, 'chain', chain)
  end
  redis.call('XADD', log, n .. '-0', 'v', chain .. '|' .. line)
  if expires then
    redis.call('PEXPIREAT', log, h[7])
  end
  h[5], h[6] = seq, chain
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
  return seq, chain, table.concat({head, h[1], n, chain, line}, '|')
end

-- tell publishes entries on lk:log, so that followers apply them at once: for each a line,
-- "head|epoch of the head|seq|chain|line". A follower that is not reached learns of them when
-- it renews. So where PUBLISH is forbidden nothing is lost but time.
local function tell(entries)
  redis.pcall('PUBLISH', 'lk:log', entries)
end

-- followers returns how many followers there are, 2 standing for any number above 1; and the
-- table of them if there is one at most. If there are more, the caller has to wait for them
-- and read the table again.
local function followers(members)
  local some = redis.call('HRANDFIELD', members, 2, 'WITHVALUES')
  return #some / 2, #some > 2 and {} or some
end

-- A revocation that is asked for again is answered with the mark of the head, h[5] and h[6]:
-- it was logged before, in this history, so whoever has applied the log up to this mark has
-- applied its entry too. The mark of its own entry would do as well, but could only be
-- confirmed by reading the log from there on.
