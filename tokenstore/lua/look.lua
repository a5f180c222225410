-- look: what the one who waits for a revocation has to know of one or several shards, as
-- of one moment. All shards are of one slot, unless this is no Cluster.
--
-- KEYS 1 members  2 acks  3 head  4 log, of the first shard, then those of the next ...
-- ARGV 1 how many entries of each shard at most
--      2 the seq after which entries of the first shard are wanted, then that of the next ...
-- Returns {now, primary_id or '', shard [, next shards]}
--
-- A shard is {epoch, seq, chain, entries, members, acks}. acks has the marks that followers have shown between two renewals. Where there is no
-- head, epoch and chain are empty and seq is 0: the data is lost.

-- A write that does nothing, and that a replica refuses: a primary that has been made one
-- may not have heard of what its successor was told.
redis.call('HDEL', KEYS[1], '')
local reply = {now_ms(), ''}
for i = 1, #KEYS, 4 do
  local shard = (i + 3) / 4
  local head = redis.call('HMGET', KEYS[i + 2], 'epoch', 'seq', 'chain')
  local seq, after, entries = tonumber(head[2]) or 0, tonumber(ARGV[shard + 1]), {}
  if seq > after then
    entries = redis.call('XRANGE', KEYS[i + 3], string.format('%d-0', after + 1), '+', 'COUNT', ARGV[1])
  end
  reply[shard + 2] = {head[1] or '', seq, head[3] or '', entries,
    redis.call('HGETALL', KEYS[i]), redis.call('HGETALL', KEYS[i + 1])}
end
-- Asked last: a name never comes back once another server had taken over.
reply[2] = primary_id()
return reply
