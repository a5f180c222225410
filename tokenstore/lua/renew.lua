-- renew: a follower shows how far it has applied the log, and learns what is
-- beyond. One atomic look: the head, the entries up to it, the table of followers.
--
-- KEYS 1 members  2 head  3 log  4 dead keys  5 acks
-- ARGV 1 epoch for a new head
--      2 member, or '' to look without taking part
--      3 the member's line in the table: "seq:chain:beat"
--      4 the seq after which entries are wanted  5 how many at most
--      6 ms that the table is kept after the last renewal
--      7 access ms of the caller, or 0  8 '1': tell the primary's id
-- Returns {now, epoch, seq, chain, longest access lifetime ms, entries, members,
--   ids of the dead keys, primary_id or ''}
local now = now_ms()
local h = open_head(KEYS[2], KEYS[3], ARGV[1], now)
stretch(KEYS[2], h, tonumber(ARGV[7]), 0)
if ARGV[2] ~= '' then
  -- A renewal that comes late, or twice, must not replace a newer one: who saw the
  -- older line before would take the member for silent ever since.
  local line = redis.call('HGET', KEYS[1], ARGV[2])
  local beat = line and tonumber(string.match(line, ':(%d+)$'))
  if not beat or beat < tonumber(string.match(ARGV[3], ':(%d+)$')) then
    redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
  end
  -- A write in any case, for a WAIT behind it.
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
  redis.call('PEXPIRE', KEYS[5], ARGV[6])
else
  -- A write that does nothing, and that a replica refuses: a primary that has been
  -- made one may not have heard of what its successor was told.
  redis.call('HDEL', KEYS[1], '')
end
local head = redis.call('HMGET', KEYS[2], 'seq', 'chain')
local entries = {}
if tonumber(head[1]) > tonumber(ARGV[4]) then
  entries = redis.call('XRANGE', KEYS[3], string.format('%.0f-0', tonumber(ARGV[4]) + 1), '+', 'COUNT', ARGV[5])
end
return {now, h[1], tonumber(head[1]), head[2], h[2], entries, redis.call('HGETALL', KEYS[1]),
  redis.call('HKEYS', KEYS[4]), ARGV[8] == '1' and primary_id() or ''}
