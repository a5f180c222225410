-- Shared by the scripts of accounts: what the password hashes of a shard's accounts cost.
--
-- The hash costs counts the accounts by cost. A cost is what a password hash has in front of
-- its salt: '$2b$12' or '$argon2id$v=19$m=19456,t=2,p=1'. The field salt is random, and no
-- answer shows it.

-- count adds by to the number of accounts whose hash costs what this one does.
local function count(costs, hash, by)
  local cost = string.match(hash, '^(%$2%w%$%d%d)%$') or string.match(hash, '^(%$argon2id?%$v=%d+%$[^$]+)%$')
  if cost and redis.call('HINCRBY', costs, cost, by) <= 0 then
    redis.call('HDEL', costs, cost)
  end
end

-- likely_cost returns the cost of a name that has no account, or '' if no account was counted.
-- Each cost comes up as often as the accounts have it, and for one name it is always the same:
-- so the time that a wrong password takes does not tell whether the name has an account. This
-- is weighted rendezvous hashing: when an account moves from one cost to another, few names
-- move, and nearly all of them the same way.
local function likely_cost(costs, name)
  local all, salt = redis.call('HGETALL', costs), redis.call('HGET', costs, 'salt') or ''
  local likely, least = '', math.huge
  for i = 1, #all, 2 do
    if all[i] ~= 'salt' then
      local digest = redis.sha1hex(salt .. ' ' .. all[i] .. ' ' .. name)
      local uniform = (tonumber(string.sub(digest, 1, 8), 16) + 0.5) / 2 ^ 32
      local score = -math.log(uniform) / tonumber(all[i + 1])
      if score < least then
        likely, least = all[i], score
      end
    end
  end
  return likely
end
