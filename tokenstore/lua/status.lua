-- Shared by the scripts that issue and revoke: places in status lists
-- (draft-ietf-oauth-status-list).
--
-- A place is "history:n". History is the epoch of the shard's head, and n counts
-- up from 1 in the head's field idx, so that a place is given out once. The head
-- has that field once any place was given out: what open_head returns as its
-- fourth. Without it nothing here costs a command, so revocations need no setting.
--
-- living, a user's or client's zset idx:<uid>, has what unexpired access tokens may
-- name, scored by when the last of them has expired: "place:sid" for a session,
-- "place+count" for the places that a client has in hand for tokens of its own.
-- invalid, the shard's zset, has what the lists show as revoked, scored likewise:
-- "place" and "place+count".
--
-- Redis makes the functions of a script anew at each call. Those of status_lists are
-- made only where there are lists: a rotation without them would take a
-- twentieth longer.
local function status_lists()
  -- client_places is the size of the next block of places that a client takes. Each of
  -- the client's tokens gets a place of its own, but a block is one member of living, so
  -- that ending all tokens marks one member for each block. The size doubles with every
  -- 16 blocks that are alive: 100,000 tokens are 105 members, ten million are 433. About
  -- a sixteenth of the places stays unused.
  local function client_places(living)
    return 64 * 2 ^ math.min(math.floor(redis.call('ZCARD', living) / 16), 9)
  end

  local function of_history(place, history)
    return place and string.sub(place, 1, #history + 1) == history .. ':'
  end

  -- take gives out count places and returns the last.
  local function take(head, count)
    return redis.call('HINCRBY', head, 'idx', count)
  end

  local function keep_living(living, member, now, till)
    drop_expired(living, now)
    redis.call('ZADD', living, till, member)
    outlive(living, now, till)
  end

  -- place_of_session returns the n of a session that is about to get an access token.
  local function place_of_session(rt, living, head, h, sid, now, pad)
    local place = redis.call('HGET', rt, 'idx')
    if not of_history(place, h[1]) then
      place = string.format('%s:%.0f', h[1], take(head, 1))
      redis.call('HSET', rt, 'idx', place)
    end
    keep_living(living, place .. ':' .. sid, now, now + h[2] + pad)
    return tonumber(string.match(place, '(%d+)$'))
  end

  -- place_of_client returns the n of a token that a client is about to get for itself.
  -- What is in hand is of one user epoch: the next one starts on places of its own.
  local function place_of_client(client, living, head, h, epoch, now, pad)
    local mine = h[1] .. ':' .. epoch .. ':'
    local hand = redis.call('HGET', client, 'idx') or ''
    local n, first, last
    if string.sub(hand, 1, #mine) == mine then
      n, first, last = string.match(string.sub(hand, #mine + 1), '^(%d+):(%d+):(%d+)$')
      n, first, last = tonumber(n), tonumber(first), tonumber(last)
    end
    if not n or n > last then
      local count = client_places(living)
      last = take(head, count)
      first = last - count + 1
      n = first
    end
    redis.call('HSET', client, 'idx', string.format('%s%.0f:%.0f:%.0f', mine, n + 1, first, last))
    keep_living(living, string.format('%s:%.0f+%.0f', h[1], first, last - first + 1), now, now + h[2] + pad)
    return n
  end

  -- mark shows places as revoked. scored is score and member, in turn.
  local function mark(invalid, now, scored)
    if #scored == 0 then
      return
    end
    -- Each call drops up to eight more than it adds: the set stays as small as its
    -- age allows without ever paying for it at once.
    local old = redis.call('ZRANGEBYSCORE', invalid, '-inf', now, 'LIMIT', 0, math.min(#scored / 2 + 8, 1000))
    if #old > 0 then
      redis.call('ZREM', invalid, unpack(old))
    end
    local latest = 0
    for i = 1, #scored, 2 do
      latest = math.max(latest, tonumber(scored[i]))
    end
    for i = 1, #scored, 1000 do
      redis.call('ZADD', invalid, unpack(scored, i, math.min(i + 999, #scored)))
    end
    outlive(invalid, now, latest)
  end

  -- places_of returns the places that access tokens of a session may name: that in its
  -- refresh key, that in a token which was shown, and if there is neither what the
  -- user's living tokens say. The refresh key can be gone before the last token. Those
  -- of a session that was denied before were marked then: they are not looked for.
  local function places_of(rt, living, h, sid, shown, denied)
    local places, found = {}, false
    for _, place in ipairs({redis.call('HGET', rt, 'idx') or '', shown}) do
      if of_history(place, h[1]) then
        places[place], found = true, true
      end
    end
    if not found and not denied then
      for _, member in ipairs(redis.call('ZRANGE', living, 0, -1)) do
        local place, whose = string.match(member, '^([^:]+:%d+):(.+)$')
        if whose == sid and of_history(place, h[1]) then
          places[place] = true
        end
      end
    end
    return places
  end

  -- mark_session shows the places of a session as revoked.
  local function mark_session(invalid, living, places, sid, now, till)
    local scored = {}
    for place in pairs(places) do
      redis.call('ZREM', living, place .. ':' .. sid)
      scored[#scored + 1] = till
      scored[#scored + 1] = place
    end
    mark(invalid, now, scored)
  end

  -- mark_user shows as revoked what living tokens of a user or a client name, but for
  -- those of one session.
  local function mark_user(invalid, living, h, except, now)
    local scored, kept = {}, {}
    local list = redis.call('ZRANGEBYSCORE', living, string.format('(%.0f', now), '+inf', 'WITHSCORES')
    for i = 1, #list, 2 do
      local place, whose = string.match(list[i], '^([^:]+:[%d+]+):?(.*)$')
      if except ~= '' and whose == except then
        kept[#kept + 1] = list[i + 1]
        kept[#kept + 1] = list[i]
      elseif of_history(place, h[1]) then
        scored[#scored + 1] = list[i + 1]
        scored[#scored + 1] = place
      end
    end
    redis.call('UNLINK', living)
    if #kept > 0 then
      redis.call('ZADD', living, unpack(kept))
      redis.call('PEXPIREAT', living, kept[#kept - 1])
    end
    mark(invalid, now, scored)
  end

  return {
    place_of_session = place_of_session, place_of_client = place_of_client,
    places_of = places_of, mark_session = mark_session, mark_user = mark_user,
  }
end
