// The page at /docs: Swagger UI on this API's own document, and a login whose
// access token is filled in for every call. The token is kept in memory alone.
"use strict";
(async () => {
  const byId = (id) => document.getElementById(id);
  // The API is where this page is, be it below another path of a proxy.
  const base = new URL(".", document.baseURI).href.replace(/\/$/, "");
  let token = "";
  let ui;

  const show = (text) => { byId("state").textContent = text; };

  const loggedIn = (answer) => {
    token = answer.access_token;
    ui.preauthorizeApiKey("accessToken", token);
    const until = new Date(Date.now() + answer.expires_in * 1000);
    show(`Logged in; the access token is good until ${until.toLocaleTimeString("en-GB")}`);
  };

  const loggedOut = () => {
    token = "";
    ui.authActions.logout(["accessToken"]);
    show("Logged out");
  };

  // observe keeps the page's token up to date with what was answered, here or
  // under an endpoint.
  const observe = (url, status, answer) => {
    const path = url.slice(base.length);
    if (status !== 200) return;
    if (path === "/auth/token" || path === "/auth/refresh") loggedIn(answer);
    if (path === "/auth/logout") loggedOut();
  };

  const call = async (method, path, body) => {
    byId("exchange").hidden = false;
    byId("request").textContent = `${method} ${path}`;
    const out = byId("response");
    try {
      const response = await fetch(base + path, { method, body, headers: token ? { Authorization: `Bearer ${token}` } : {} });
      const answer = await response.json();
      byId("request").textContent = `${method} ${path} → ${response.status} ${response.statusText}`;
      out.textContent = JSON.stringify(answer, null, 2);
      observe(base + path, response.status, answer);
    } catch (e) {
      out.textContent = `There was no answer: ${e.message}`;
    }
  };

  const description = await (await fetch(base + "/openapi.json")).json();
  // The page talks to whom it came from, whatever the issuer is called.
  description.servers = [{ url: base || "/" }];

  await new Promise((ready) => {
    ui = SwaggerUIBundle({
      spec: description,
      domNode: byId("api"),
      deepLinking: true,
      tryItOutEnabled: true,
      displayRequestDuration: true,
      defaultModelsExpandDepth: 0,
      validatorUrl: null,
      syntaxHighlight: false,
      responseInterceptor: (response) => {
        observe(response.url, response.status, response.body);
        return response;
      },
      onComplete: ready,
    });
  });

  byId("login").addEventListener("submit", (event) => {
    event.preventDefault();
    token = ""; // another user may log in
    call("POST", "/auth/token", new URLSearchParams(new FormData(event.target)));
  });
  byId("me").addEventListener("click", () => call("GET", "/users/me"));
  byId("logout").addEventListener("click", () => call("POST", "/auth/logout"));
  document.documentElement.dataset.ready = "true";
})();
