-- throttle_charge: charges one attempt to each key, or to none.
--
-- KEYS 1 receipt, then throttle keys
-- ARGV 1 how long the receipt is kept (ms), then burst and period (ms) for each key
-- Returns {now, wait ms}
--         a wait of more than 0: nothing was charged
local now = now_ms()
return {now, charge(KEYS[1], ARGV[1], 2, now)}
