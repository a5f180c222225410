-- Shared by the scripts that look at whom a session's tokens were issued to.
--
-- issued_to tells whether a session is of the client that is wanted: the id of a
-- registered client, or '' for password logins. Their sessions carry the id of the
-- public client, which does not begin with lkc_ as the ids of registered clients do.
local function issued_to(client, wanted)
  if wanted == '' then
    return not client or string.sub(client, 1, 4) ~= 'lkc_'
  end
  return client == wanted
end
