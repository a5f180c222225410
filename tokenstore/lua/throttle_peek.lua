-- throttle_peek: how long until the next attempt is let in? Charges nothing.
--
-- KEYS throttle keys   ARGV burst and period (ms) for each
-- Returns {now, wait ms}
local now = now_ms()
local wait = 0
for i = 1, #KEYS do
  wait = math.max(wait, wait_ms(KEYS[i], now, tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])))
end
return {now, wait}
