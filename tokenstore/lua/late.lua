-- In front of every script that writes. The last of ARGV, which no header lists, is a
-- time (ms): after it nobody waits for the answer. A copy of the request that comes later
-- changes nothing: it could undo what has happened since.
--
-- Returns {'LATE', now} then, in place of what the script returns.
local deadline = tonumber(table.remove(ARGV))
if now_ms() > deadline then
  return {'LATE', now_ms()}
end
