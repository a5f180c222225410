-- primary_id names the server that runs this script, as the primary that it has
-- been since it was started or promoted: INFO's master_replid, which is random, new
-- with each start and each promotion, and never comes back. (run_id is not enough: a
-- server that was replaced and then promoted again has the one it had.) '' where INFO
-- is forbidden, or says nothing of it.
local function primary_id()
  local info = redis.pcall('INFO', 'replication')
  return type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or ''
end
