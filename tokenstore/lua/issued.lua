-- Shared by the scripts that look at whom a session's tokens were issued to.
--
-- issued_to tells whether a session is of the client that is wanted: the id of a
-- registered client, or '' for the service's own logins, whose sessions carry
-- whatever LATCHKEY_CLIENT_ID was at the time; no registered client's id can be
-- that, since all begin with lkc_.
local function issued_to(client, wanted)
  if wanted == '' then
    return not client or string.sub(client, 1, 4) ~= 'lkc_'
  end
  return client == wanted
end
