-- keys_sync: does what is due among the signing keys and returns them.
--
-- KEYS 1 keys   ARGV 1-6 as in keyring.lua
-- Returns {0, now, 1 if a key is to be made, when the next one signs, the hash}
--
-- It writes only what changes: a full Redis can still be asked.
local now, s = now_ms(), settings()
local f = fields(KEYS[1])
settle(KEYS[1], f, now, s)
return answer(0, KEYS[1], f, now, s)
