-- Asks Latchkey about a request, for haproxy.cfg:
--
--   http-request lua.latchkey URL SCOPE
--
-- On 2xx it sets the variables txn.latchkey_accepted, _subject, _session, _scope
-- and _expires. Every other answer goes to the client as it is; no answer at all
-- is a 503.

-- How long an answer may take, in milliseconds: longer than Latchkey takes to say
-- that Redis does not answer (three times LATCHKEY_REDIS_TIMEOUT). HAProxy's client
-- asks up to four times, so a frozen Latchkey holds a request up four times as long.
local timeout = 1000

-- The headers of a refusal that are for the client.
local passed = { "www-authenticate", "retry-after", "content-type", "cache-control", "x-request-id", "dpop-nonce" }

local function refuse(txn, status, headers, body)
	local reply = txn:reply()
	reply:set_status(status)
	for name, value in pairs(headers) do
		reply:add_header(name, value)
	end
	reply:set_body(body)
	txn:done(reply) -- does not return
end

-- Every value of a request header, in order, or nil.
local function values(all, name)
	local found = all[name]
	if not found then
		return nil
	end
	local list, i = {}, 0
	while found[i] do
		list[#list + 1] = found[i]
		i = i + 1
	end
	return list
end

core.register_action("latchkey", { "http-req" }, function(txn, url, scope)
	txn:set_var("txn.latchkey_accepted", false)
	local sent = txn.http:req_get_headers()
	local tls = txn.f:ssl_fc()
	local headers = {
		-- What the token is in: all of it, so that what was sent twice is refused.
		["authorization"] = values(sent, "authorization"),
		["cookie"] = values(sent, "cookie"),
		-- With LATCHKEY_ACCESS_COOKIE these tell Latchkey what the browser asked
		-- for, to refuse what another site's page had it send. A WebSocket is known by
		-- the last two.
		["origin"] = values(sent, "origin"),
		["sec-fetch-site"] = values(sent, "sec-fetch-site"),
		["sec-fetch-mode"] = values(sent, "sec-fetch-mode"),
		["sec-websocket-version"] = values(sent, "sec-websocket-version"),
		-- For tokens that are bound to a key: the proof, and of what request it must be.
		["dpop"] = values(sent, "dpop"),
		["x-forwarded-proto"] = { (tls == true or tls == 1) and "https" or "http" },
		["x-forwarded-uri"] = { txn.sf:pathq() },
		["x-forwarded-method"] = { txn.sf:method() },
		["x-forwarded-host"] = values(sent, "host"),
		["x-forwarded-for"] = { txn.sf:src() },
		["x-request-id"] = values(sent, "x-request-id"),
	}
	if scope ~= "-" then
		url = url .. "?scope=" .. scope
	end

	local ok, answer = pcall(function()
		return core.httpclient():get({ url = url, headers = headers, timeout = timeout })
	end)
	local status = ok and answer and answer.status or 0
	if status >= 200 and status < 300 then
		for _, name in ipairs({ "subject", "session", "scope", "expires" }) do
			local value = answer.headers["x-auth-" .. name]
			txn:set_var("txn.latchkey_" .. name, value and value[0] or "")
		end
		txn:set_var("txn.latchkey_accepted", true)
		return
	end
	if status < 400 or not answer.headers or not answer.headers["x-request-id"] then
		-- No answer, or HAProxy's own in place of Latchkey's, which always has an id.
		refuse(txn, 503, { ["retry-after"] = "1", ["cache-control"] = "no-store", ["content-type"] = "application/json" },
			'{"error":"temporarily_unavailable","detail":"Service temporarily unavailable"}')
	end
	local told = {}
	for _, name in ipairs(passed) do
		if answer.headers[name] then
			told[name] = answer.headers[name][0]
		end
	end
	refuse(txn, status, told, answer.body or "")
end, 2)
