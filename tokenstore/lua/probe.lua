-- probe: may this user write below the prefix, by a script?
--
-- KEYS 1 probe, of the shard
-- Returns {now, primary_id}
redis.call('SET', KEYS[1], '1', 'PX', 1000)
return {now_ms(), primary_id()}
