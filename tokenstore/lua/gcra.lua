-- Shared by the throttle's scripts. The generic cell rate algorithm over one
-- number a key: the theoretical arrival time in ms. burst attempts may come at
-- once, and burst more in each period. An attempt is charged before its password is
-- checked, so that no more than burst are ever under way, and refunded unless it was a
-- wrong guess.
--
-- A charge writes a receipt, a key named by the request, which holds the theoretical
-- arrival time of each throttle key after the charge. While the receipt is there, a copy of
-- the charge changes nothing; a refund deletes it, so that a copy of the refund changes
-- nothing either.

-- wait_ms returns how long to wait before the next attempt, 0 for not at all. No charge
-- leads further ahead than one period. A time beyond that means that the clock was set back
-- since: it is lowered to one period from now, or nobody could log in until the clock had
-- caught up.
local function wait_ms(key, now, burst, period)
  local tat = tonumber((redis.call('GET', key)))
  if not tat then
    return 0
  end
  if tat > now + period + 1 then -- charges round up to the next ms
    tat = now + period
    redis.call('SET', key, tat, 'PXAT', tat)
  end
  return math.max(0, math.ceil(tat - now - (period - period / burst)))
end

-- charge charges KEYS[first] and those behind it, with burst and period in ARGV from
-- 2 on, and returns 0; or charges none of them and returns how long to wait.
local function charge(receipt, keep, first, now)
  if redis.call('EXISTS', receipt) == 1 then
    return 0
  end
  local wait = 0
  for i = first, #KEYS do
    local a = 2 * (i - first) + 2
    wait = math.max(wait, wait_ms(KEYS[i], now, tonumber(ARGV[a]), tonumber(ARGV[a + 1])))
  end
  if wait > 0 then
    return wait
  end
  local charged = {}
  for i = first, #KEYS do
    local a = 2 * (i - first) + 2
    local tat = math.max(tonumber((redis.call('GET', KEYS[i]))) or 0, now)
    tat = math.ceil(tat + tonumber(ARGV[a + 1]) / tonumber(ARGV[a]))
    redis.call('SET', KEYS[i], tat, 'PXAT', tat)
    charged[#charged + 1] = string.format('%.0f', tat)
  end
  redis.call('SET', receipt, table.concat(charged, ' '), 'PX', keep)
  return 0
end
