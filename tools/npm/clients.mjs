// jose, oauth4webapi and @sd-jwt/jwt-status-list, unchanged, against a running Latchkey.
//
//   LATCHKEY_TEST='{"base":…,"audience":…,"alg":…,"nonces":…,"access":…,"refresh":…,"user":{"username":…,"password":…},
//     "worker":{"id":…,"secret":…},"asker":…,"app":…}' node clients.mjs
//
// nonces says that the service has LATCHKEY_DPOP_NONCE; it trusts this machine as a
// proxy. worker has the grant client_credentials and the scopes "read write", asker
// may introspect, app holds the refresh token of a user.
import assert from "node:assert/strict";
import test from "node:test";
import { setTimeout as wait } from "node:timers/promises";
import { getListFromStatusListJWT, getStatusListFromJWT } from "@sd-jwt/jwt-status-list";
import { createRemoteJWKSet, decodeProtectedHeader, errors, jwtVerify } from "jose";
import * as oauth from "oauth4webapi";

const { base, audience, alg, nonces, access, refresh, user, worker, asker, app } = JSON.parse(process.env.LATCHKEY_TEST);
const insecure = { [oauth.allowInsecureRequests]: true }; // the test's server has no TLS

const issuer = new URL(base);
const server = await oauth
  .discoveryRequest(issuer, { algorithm: "oauth2", ...insecure })
  .then((response) => oauth.processDiscoveryResponse(issuer, response));
const styles = { basic: oauth.ClientSecretBasic, post: oauth.ClientSecretPost };
const granted = async (style, parameters) => {
  const client = { client_id: worker.id };
  const response = await oauth.clientCredentialsGrantRequest(server, client, styles[style](worker.secret), new URLSearchParams(parameters), insecure);
  return oauth.processClientCredentialsResponse(server, client, response);
};
const verify = (token) => fetch(`${base}/auth/verify`, { headers: { Authorization: `Bearer ${token}` } }).then((r) => r.status);

test("jose: createRemoteJWKSet and jwtVerify (RFC 9068 section 4)", async (t) => {
  const keys = createRemoteJWKSet(new URL(server.jwks_uri));
  const options = { issuer: base, audience, typ: "at+jwt", algorithms: [alg], requiredClaims: ["client_id", "jti", "iat", "exp", "sub", "sid"] };
  const { payload, protectedHeader } = await jwtVerify(access, keys, options);
  assert.equal(payload.sub, "alice");
  assert.equal(protectedHeader.alg, alg);
  const wrong = {
    "another audience": { audience: "https://other.example" },
    "another issuer": { issuer: "https://other.example" },
    "another type": { typ: "JWT" },
    "another algorithm": { algorithms: ["PS256"] },
    "after it expired": { currentDate: new Date((payload.exp + 1) * 1000) },
  };
  for (const [name, change] of Object.entries(wrong)) {
    await t.test(name, () => assert.rejects(jwtVerify(access, keys, { ...options, ...change }), errors.JOSEError));
  }
  const altered = access.slice(0, -10) + (access.at(-10) === "A" ? "B" : "A") + access.slice(-9);
  await t.test("altered", () => assert.rejects(jwtVerify(altered, keys, options), errors.JWSSignatureVerificationFailed));
});

test("@sd-jwt/jwt-status-list and jose: a revocation shows (draft-ietf-oauth-status-list-21 section 8.3)", async () => {
  const keys = createRemoteJWKSet(new URL(server.jwks_uri));
  const status = async (token) => {
    const { idx, uri } = getStatusListFromJWT(token);
    const response = await fetch(uri, { headers: { Accept: "application/statuslist+jwt" } });
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("content-type"), "application/statuslist+jwt");
    const list = await response.text();
    const { payload } = await jwtVerify(list, keys, { typ: "statuslist+jwt", algorithms: [alg], subject: uri, requiredClaims: ["iat", "exp", "ttl"] });
    assert.equal(payload.ttl, 1);
    return getListFromStatusListJWT(list).getStatus(idx);
  };
  const [gone, kept] = await Promise.all([granted("basic", {}), granted("basic", {})]);
  assert.equal(await status(gone.access_token), 0);
  const client = { client_id: worker.id };
  await oauth.processRevocationResponse(await oauth.revocationRequest(server, client, styles.basic(worker.secret), gone.access_token, insecure));
  const until = Date.now() + 3000; // LATCHKEY_STATUS_LIST_TTL and 2 s
  while ((await status(gone.access_token)) !== 1) {
    assert.ok(Date.now() < until, "the revocation does not show in time");
    await wait(50);
  }
  assert.equal(await status(kept.access_token), 0);
});

for (const style of Object.keys(styles)) {
  test(`oauth4webapi: client credentials, introspection, revocation, client_secret_${style} (RFC 6749, 7662, 7009)`, async () => {
    const token = await granted(style, { scope: "read" });
    assert.equal(token.token_type, "bearer");
    assert.equal(token.scope, "read");
    assert.equal(token.refresh_token, undefined);
    assert.equal(await verify(token.access_token), 204);

    const client = { client_id: asker.id };
    const introspect = async () => {
      const response = await oauth.introspectionRequest(server, client, styles[style](asker.secret), token.access_token, insecure);
      return oauth.processIntrospectionResponse(server, client, response);
    };
    const living = await introspect();
    assert.equal(living.active, true);
    assert.equal(living.client_id, worker.id);
    assert.equal(living.scope, "read");

    const revoked = await oauth.revocationRequest(server, { client_id: worker.id }, styles[style](worker.secret), token.access_token, insecure);
    await oauth.processRevocationResponse(revoked);
    assert.deepEqual(await introspect(), { active: false });
    assert.equal(await verify(token.access_token), 401);
    // RFC 7009 section 2.2: what was never a token is no error.
    await oauth.processRevocationResponse(
      await oauth.revocationRequest(server, { client_id: worker.id }, styles[style](worker.secret), "nonsense", insecure));
  });
}

test("oauth4webapi: what a client may not do (RFC 6749 section 5.2)", async () => {
  await assert.rejects(granted("post", { scope: "admin" }), (e) => e instanceof oauth.ResponseBodyError && e.error === "invalid_scope" && e.status === 400);
  const client = { client_id: worker.id };
  const response = await oauth.clientCredentialsGrantRequest(server, client, oauth.ClientSecretPost("wrong"), {}, insecure);
  await assert.rejects(oauth.processClientCredentialsResponse(server, client, response), (e) =>
    (e instanceof oauth.WWWAuthenticateChallengeError && e.cause[0].scheme === "basic") || e.error === "invalid_client");
});

test("oauth4webapi: refresh (RFC 6749 section 6)", async () => {
  const client = { client_id: app.id };
  const exchange = async (token) => oauth.processRefreshTokenResponse(server, client,
    await oauth.refreshTokenGrantRequest(server, client, oauth.ClientSecretBasic(app.secret), token, insecure));
  const first = await exchange(refresh);
  const second = await exchange(first.refresh_token);
  assert.notEqual(first.refresh_token, refresh);
  assert.equal(await verify(second.access_token), 204);
  const late = async () => { for (;;) await exchange(refresh); }; // until the grace is over: then it is a theft
  await assert.rejects(late, (e) => e.error === "invalid_grant");
  assert.equal(await verify(second.access_token), 401);
});

test("oauth4webapi: a resource server's check of an access token (RFC 9068 section 4)", async () => {
  const { access_token: token } = await granted("basic", {});
  const request = new Request("https://api.example.com/", { headers: { Authorization: `Bearer ${token}` } });
  const claims = await oauth.validateJwtAccessToken(server, request, audience, { signingAlgorithms: [alg], ...insecure });
  assert.equal(claims.sub, worker.id);
  assert.equal(claims.client_id, worker.id);
  assert.equal(decodeProtectedHeader(token).typ, "at+jwt");
});

// oauth4webapi writes the name of RFC 9864, and so this is its documentation's way to
// the name of RFC 8037, which the service's metadata has.
const remapEd25519 = { [oauth.modifyAssertion]: (header) => { if (header.alg === "Ed25519") header.alg = "EdDSA"; } };
const holder = async (client, keyAlg) => oauth.DPoP(client, await oauth.generateKeyPair(keyAlg), remapEd25519);

// fresh sends a request whose proof has no nonce yet, and with nonces once more: the
// handle remembers the one of the refusal.
async function fresh(send) {
  if (!nonces) return send();
  await assert.rejects(send, (e) => oauth.isDPoPNonceError(e));
  return send();
}

// orders is an API behind a proxy that asks /auth/verify about each request.
const orders = new URL("https://orders.example.com/orders?of=today");
const behindProxy = {
  [oauth.customFetch]: (url, { method, headers }) => fetch(`${base}/auth/verify`, { headers: {
    ...headers, "x-forwarded-method": method, "x-forwarded-proto": "https", "x-forwarded-host": orders.host, "x-forwarded-uri": orders.pathname + orders.search,
  } }),
};
const refused = (error) => (e) =>
  e instanceof oauth.WWWAuthenticateChallengeError && e.status === 401 && e.cause.some((c) => c.parameters.error === error);

for (const [keyAlg, name] of [["ES256", "ES256"], ["PS256", "PS256"], ["Ed25519", "EdDSA"]]) {
  test(`oauth4webapi: DPoP with ${keyAlg}, client credentials (RFC 9449)`, async (t) => {
    assert.ok(server.dpop_signing_alg_values_supported.includes(name));
    const client = { client_id: worker.id };
    const DPoP = await holder(client, keyAlg);
    const token = await fresh(async () => oauth.processClientCredentialsResponse(server, client,
      await oauth.clientCredentialsGrantRequest(server, client, oauth.ClientSecretBasic(worker.secret), {}, { DPoP, ...insecure })));
    assert.equal(token.token_type, "dpop");
    assert.equal(token.refresh_token, undefined);
    const thumbprint = await DPoP.calculateThumbprint();
    const call = (handle) => oauth.protectedResourceRequest(token.access_token, "GET", orders, undefined, undefined, { DPoP: handle, ...behindProxy });

    assert.equal((await fresh(() => call(DPoP))).status, 204);
    assert.equal((await call(DPoP)).status, 204); // a proof of its own for each request
    await t.test("not as Bearer (section 7.1)", () => assert.rejects(call(undefined), refused("invalid_token")));
    await t.test("not with another key", async () => {
      const other = await holder(client, keyAlg);
      await assert.rejects(fresh(() => call(other)), refused("invalid_token"));
    });
    await t.test("introspection shows the key (section 6.2)", async () => {
      const by = { client_id: asker.id };
      const told = await oauth.processIntrospectionResponse(server, by,
        await oauth.introspectionRequest(server, by, oauth.ClientSecretBasic(asker.secret), token.access_token, insecure));
      assert.equal(told.active, true);
      assert.equal(told.cnf.jkt, thumbprint);
      assert.equal(told.token_type, "DPoP");
    });
    await t.test("a resource server of oauth4webapi's checks it, too (section 7)", async () => {
      let request;
      await oauth.protectedResourceRequest(token.access_token, "GET", orders, undefined, undefined,
        { DPoP, [oauth.customFetch]: async (url, options) => { request = new Request(url, options); return new Response(); } });
      // The names of its keys' and our proofs' algorithms are one list there.
      const claims = await oauth.validateJwtAccessToken(server, request, audience, { requireDPoP: true, signingAlgorithms: [alg, name], ...insecure });
      assert.equal(claims.cnf.jkt, thumbprint);
    });
  });
}

test("oauth4webapi: DPoP, a public client's refresh token is bound (RFC 9449 section 5)", async (t) => {
  const client = { client_id: "latchkey" }; // the service's own
  const DPoP = await holder(client, "ES256");
  const login = { ...server, token_endpoint: `${base}/auth/token` };
  const session = await fresh(async () => oauth.processGenericTokenEndpointResponse(login, client,
    await oauth.genericTokenEndpointRequest(login, client, oauth.None(), "password", { ...user, refresh_delivery: "body" }, { DPoP, ...insecure })));
  assert.equal(session.token_type, "dpop");
  const exchange = async (handle) => oauth.processRefreshTokenResponse(server, client,
    await oauth.refreshTokenGrantRequest(server, client, oauth.None(), session.refresh_token, { DPoP: handle, ...insecure }));
  const isError = (status, error) => (e) => e instanceof oauth.ResponseBodyError && e.status === status && e.error === error;
  const me = (token, handle) => oauth.protectedResourceRequest(token, "GET", new URL(`${base}/users/me`), undefined, undefined, { DPoP: handle, ...insecure });

  await t.test("not without a proof", () => assert.rejects(exchange(undefined), isError(400, "invalid_dpop_proof")));
  await t.test("not with another key", async () => {
    const other = await holder(client, "ES256");
    await assert.rejects(fresh(() => exchange(other)), isError(400, "invalid_grant"));
  });
  const next = await exchange(DPoP); // neither of them was a theft
  assert.equal(next.token_type, "dpop");
  assert.notEqual(next.refresh_token, session.refresh_token);
  const answer = await me(next.access_token, DPoP);
  assert.equal((await answer.json()).username, user.username);
  await t.test("the new access token, not as Bearer", () => assert.rejects(me(next.access_token, undefined), refused("invalid_token")));
});
