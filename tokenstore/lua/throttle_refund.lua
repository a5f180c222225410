-- throttle_refund: takes back the charge that a receipt names.
--
-- KEYS 1 receipt, then the throttle keys of the charge
-- ARGV 1 unused, then burst and period (ms) for each key
-- Returns {now}
--
-- A budget regains charges with time. The part of this charge that was regained already is
-- not refunded: that would cancel charges of other attempts.
local now = now_ms()
local charged = redis.call('GET', KEYS[1])
if not charged then
  return {now}
end
redis.call('DEL', KEYS[1])
local i = 1
for after in string.gmatch(charged, '%d+') do
  i = i + 1
  local tat = tonumber((redis.call('GET', KEYS[i]))) or 0
  local paid = tonumber(ARGV[2 * i - 1]) / tonumber(ARGV[2 * i - 2])
  tat = math.ceil(tat - math.max(0, math.min(paid, tonumber(after) - now)))
  if tat > now then
    redis.call('SET', KEYS[i], tat, 'PXAT', tat)
  else
    redis.call('DEL', KEYS[i])
  end
end
return {now}
