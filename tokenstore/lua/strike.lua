-- strike: takes a dead follower out of the table, unless it has shown life.
--
-- KEYS 1 members  2 acks   ARGV 1 member  2 the line it was last seen with
-- Returns {1} struck  {0} it moved, or is gone
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return {0}
end
redis.call('HDEL', KEYS[1], ARGV[1])
-- An acknowledgement that came late may be left of others that are gone, too.
for _, member in ipairs(redis.call('HKEYS', KEYS[2])) do
  if redis.call('HEXISTS', KEYS[1], member) == 0 then
    redis.call('HDEL', KEYS[2], member)
  end
end
return {1}
