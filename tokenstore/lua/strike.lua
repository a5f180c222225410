-- strike: takes a dead follower out of the table, unless it has shown life.
--
-- KEYS 1 members   ARGV 1 member  2 the line it was last seen with
-- Returns {1} struck  {0} it moved, or is gone
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
  return {1}
end
return {0}
