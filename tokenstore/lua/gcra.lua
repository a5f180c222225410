-- Shared by the throttle's scripts. The generic cell rate algorithm over one
-- number a key: the theoretical arrival time in ms. burst failures may come at
-- once, and burst more in each period.

-- wait_ms returns how long to wait before the next attempt, 0 for not at all.
local function wait_ms(key, now, burst, period)
  local tat = tonumber((redis.call('GET', key)))
  if not tat then
    return 0
  end
  return math.max(0, math.ceil(tat - now - (period - period / burst)))
end

-- spend charges one failure. It charges also when the budget is empty:
-- attempts that were let in together and all failed are all paid for. The debt
-- is bounded by one period, so that nobody can be kept out for good.
local function spend(key, now, burst, period)
  local tat = math.max(tonumber((redis.call('GET', key))) or 0, now) + period / burst
  tat = math.ceil(math.min(tat, now + 2 * period))
  redis.call('SET', key, tat, 'PXAT', tat)
end
