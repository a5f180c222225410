// jose, oauth4webapi and @sd-jwt/jwt-status-list, unchanged, against a running Latchkey.
//
//   LATCHKEY_TEST='{"base":…,"audience":…,"alg":…,"access":…,"refresh":…,"worker":{"id":…,"secret":…},"asker":…,"app":…}' node clients.mjs
//
// worker has the grant client_credentials and the scopes "read write", asker may
// introspect, app holds the refresh token of a user.
import assert from "node:assert/strict";
import test from "node:test";
import { setTimeout as wait } from "node:timers/promises";
import { getListFromStatusListJWT, getStatusListFromJWT } from "@sd-jwt/jwt-status-list";
import { createRemoteJWKSet, decodeProtectedHeader, errors, jwtVerify } from "jose";
import * as oauth from "oauth4webapi";

const { base, audience, alg, access, refresh, worker, asker, app } = JSON.parse(process.env.LATCHKEY_TEST);
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
  await assert.rejects(exchange(refresh), (e) => e.error === "invalid_grant"); // two generations old: theft
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
