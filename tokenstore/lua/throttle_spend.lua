-- throttle_spend: charges one failed attempt to each key.
--
-- KEYS throttle keys   ARGV burst and period (ms) for each
-- Returns {now}
--
-- A copy that comes before its deadline (late.lua) counts the failure twice.
local now = now_ms()
for i = 1, #KEYS do
  spend(KEYS[i], now, tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i]))
end
return {now}
