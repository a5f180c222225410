// Opens /docs of a running Latchkey in Chromium and does what a newcomer does, with
// the mouse and then with the keyboard alone.
//
//   node page.mjs http://127.0.0.1:8080 USERNAME PASSWORD [screenshot folder]
//
// It fails on an error in the console, a request to another origin, and anything
// that is not as it should be.
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [base, username, password, folder] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-background-networking"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
const faults = [];
try {
  page.setDefaultTimeout(30_000);
  let refusals = 0; // answers of 401 that are wanted; Chromium writes each to the console
  page.on("console", (m) => {
    if (m.type() !== "error" && m.type() !== "warning") return;
    if (/status of 401/.test(m.text()) && refusals-- > 0) return;
    faults.push(`console: ${m.text()}`);
  });
  page.on("pageerror", (e) => faults.push(`exception: ${e.message}`));
  page.on("request", (r) => {
    if (!/^(data|blob):/.test(r.url()) && new URL(r.url()).origin !== base) faults.push(`another origin: ${r.url()}`);
  });
  const shot = async (name, options) => folder && page.screenshot({ path: `${folder}/${name}.png`, ...options });
  const answer = async (text) => page.locator("#response", { hasText: text }).waitFor();
  const state = async (text) => page.locator("#state", { hasText: new RegExp(`^${text}`) }).waitFor();

  const response = await page.goto(`${base}/docs`);
  assert.equal(response.status(), 200);
  await page.locator("html[data-ready]").waitFor();
  await shot("start");

  // By clicking, in the panel.
  refusals = 1;
  await page.getByRole("button", { name: "Who am I?", exact: true }).click();
  await answer('"unauthorized"');
  await page.getByLabel("Username").fill(username);
  await page.getByLabel("Password", { exact: true }).fill(password);
  await page.getByRole("button", { name: "Log in", exact: true }).click();
  await state("Logged in");
  await answer('"access_token"');
  await page.getByRole("button", { name: "Who am I?", exact: true }).click();
  await answer(`"username": "${username}"`);
  await shot("panel");

  // The endpoints below send the same token.
  const endpoint = (id) => page.locator(`[id$="-${id}"]`);
  const open = async (id) => endpoint(id).locator("button.opblock-summary-control").click();
  const execute = async (id, status) => {
    await endpoint(id).getByRole("button", { name: "Execute", exact: true }).click();
    await endpoint(id).locator(".live-responses-table .response-col_status", { hasText: String(status) }).waitFor();
  };
  await open("me");
  await execute("me", 200);
  assert.match(await endpoint("me").locator(".live-responses-table").innerText(), new RegExp(`"username": "${username}"`));
  await endpoint("me").scrollIntoViewIfNeeded();
  await shot("endpoint");
  await open("me");

  await page.getByRole("button", { name: "Log out", exact: true }).click();
  await state("Logged out");
  refusals = 1;
  await page.getByRole("button", { name: "Who am I?", exact: true }).click();
  await answer('"unauthorized"');

  // By clicking, in the endpoints alone.
  await open("login");
  await endpoint("login").locator("[data-property-name=username] input, input[placeholder=username]").first().fill(username);
  await endpoint("login").locator("[data-property-name=password] input, input[placeholder=password]").first().fill(password);
  await execute("login", 200);
  await state("Logged in");
  await shot("login");
  await open("login");
  await open("me");
  await execute("me", 200);
  await open("logout");
  await execute("logout", 200);
  await state("Logged out");
  refusals = 1;
  await execute("me", 401);

  // With the keyboard alone.
  await page.goto("about:blank");
  await page.goto(`${base}/docs`);
  await page.locator("html[data-ready]").waitFor();
  const focused = () => page.evaluate(() => {
    const e = document.activeElement;
    return (e.labels?.[0] ?? e).textContent.trim() || e.getAttribute("aria-label") || e.id;
  });
  const tabTo = async (name) => {
    for (let i = 0; i < 60; i++) {
      await page.keyboard.press("Tab");
      if ((await focused()) === name) return;
    }
    assert.fail(`${name} cannot be reached with the tabulator key`);
  };
  await tabTo("Username");
  await page.keyboard.type(username);
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "Password");
  await page.keyboard.type(password);
  await page.keyboard.press("Enter");
  await state("Logged in");
  await tabTo("Who am I?");
  await page.keyboard.press("Enter");
  await answer(`"username": "${username}"`);
  await shot("keyboard");
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "Log out");
  await page.keyboard.press("Space");
  await state("Logged out");
  // An endpoint opens with it too.
  for (let i = 0; i < 60 && !(await focused()).includes("/users/me"); i++) await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await endpoint("me").getByRole("button", { name: "Execute", exact: true }).waitFor();

  // On a telephone nothing is cut off.
  await page.setViewportSize({ width: 390, height: 844 });
  const wide = await page.evaluate(() => {
    const width = document.documentElement.clientWidth;
    return document.documentElement.scrollWidth > width
      ? [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > width).map((e) => e.className || e.id) : [];
  });
  if (wide.length) faults.push(`wider than a telephone: ${wide}`);
  await page.evaluate(() => scrollTo(0, 0));
  await shot("telephone");
} catch (e) {
  faults.push(e.stack, `the page said: ${await page.locator("header, #exchange").allInnerTexts()}`);
} finally {
  await browser.close();
}
for (const f of faults) console.error(f);
if (faults.length) process.exit(1);
console.log("the page is as it should be");
