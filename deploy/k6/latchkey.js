// What the scenarios of this folder share: a client of Latchkey that knows which
// answers are right, metrics that count the wrong ones, and the checks after a
// logout. docs/load-testing.md says how to run them and what the tables mean.
//
// Settings, each by k6's -e NAME=value:
//
//   BASE_URL      the service, as clients reach it      http://127.0.0.1:8080
//   REPLICAS      each replica's own URL, commas        BASE_URL
//                 between them: where it is asked
//                 whether a logout holds everywhere
//   USERS         how many users there are              20
//   USER_PREFIX   their names: load-0, load-1, ...      load-
//   PASSWORD      of all of them                        (required)
//   RATE, DURATION, VUS                                 as each scenario says
//   P95_VERIFY, P95_REFRESH, P95_LOGIN, P95_LOGOUT      thresholds, in ms
//   SUMMARY       a file for the figures as JSON

import http from 'k6/http'
import exec from 'k6/execution'
import { sleep } from 'k6'
import { Counter } from 'k6/metrics'

export const base = (__ENV.BASE_URL || 'http://127.0.0.1:8080').replace(/\/+$/, '')
export const replicas = (__ENV.REPLICAS || base).split(',').map((url) => url.trim().replace(/\/+$/, '')).filter((url) => url)
export const users = Number(__ENV.USERS || 20)
const prefix = __ENV.USER_PREFIX || 'load-'
const password = __ENV.PASSWORD

export const rate = (standard) => Number(__ENV.RATE || standard)
export const vus = (standard) => Number(__ENV.VUS || standard)
export const duration = (standard) => __ENV.DURATION || standard

// Every request but those of the checks after a logout is counted here, with the
// tag op.
const requests = new Counter('requests')
// Answers that say to try again: 502, 503, 504, or none. The request is sent again.
const retryable = new Counter('retryable')
// Any other answer that is not the right one; and tries that came to nothing.
const failed = new Counter('failed')

// What must not happen, however slow or broken the deployment is.
const acceptedAfterLogout = new Counter('accepted_after_logout')
const falseLogouts = new Counter('false_logouts')
const splitSuccessors = new Counter('split_successors')
// Of the checks after a logout: refusals, and replicas that did not answer.
const refusedAfterLogout = new Counter('refused_after_logout')
const unansweredAfterLogout = new Counter('unanswered_after_logout')

export const operations = ['login', 'refresh', 'verify', 'logout', 'logout_all', 'sessions']

// options are k6's for one scenario. A metric is broken down in the summary only
// where a threshold names its tags, so those that say nothing are there for that.
export function options(name, scenario, more) {
  const thresholds = {
    accepted_after_logout: ['count==0'],
    false_logouts: ['count==0'],
    split_successors: ['count==0'],
    failed: ['count==0'],
    'http_req_duration{op:verify}': [`p(95)<${__ENV.P95_VERIFY || 100}`],
    'http_req_duration{op:refresh}': [`p(95)<${__ENV.P95_REFRESH || 250}`],
    'http_req_duration{op:login}': [`p(95)<${__ENV.P95_LOGIN || 1000}`],
    'http_req_duration{op:logout}': [`p(95)<${__ENV.P95_LOGOUT || 1500}`],
    'http_req_duration{op:logout_all}': [`p(95)<${__ENV.P95_LOGOUT || 1500}`],
    'http_req_duration{op:sessions}': ['max>=0'],
  }
  for (const metric of ['requests', 'retryable', 'failed']) {
    for (const op of operations) thresholds[`${metric}{op:${op}}`] = ['count>=0']
  }
  return {
    scenarios: { [name]: scenario },
    thresholds: Object.assign(thresholds, more),
    summaryTrendStats: ['med', 'p(95)', 'p(99)', 'max'],
    batch: 64,
    batchPerHost: 64,
    userAgent: 'latchkey-k6',
    setupTimeout: '60s',
  }
}

// prepare is every scenario's setup: it fails at once what could not succeed, and
// opens a session for each of n virtual users, one after another: that all log in at
// once is what login-ramp is for.
export function prepare(n) {
  const stop = (why) => exec.test.abort(why)
  if (!password) stop('PASSWORD is not set: -e PASSWORD=...')
  for (const url of [base, ...replicas]) {
    const r = http.get(`${url}/auth/verify`, { responseCallback: http.expectedStatuses(401) })
    if (r.status !== 401) stop(`${url} does not answer as Latchkey does: ${r.status} ${r.error}`)
  }
  const s = login(0)
  if (!s) stop(`${prefix}0 cannot log in: see docs/load-testing.md for how the users are made`)
  end(s)
  const opened = Array.from({ length: n }, (_, i) => login(i + 1))
  console.log('the scenario begins')
  return opened
}

const again = [0, 502, 503, 504]

// call sends a request until it gets an answer other than try again, five times at
// most, and returns it if it is one of those wanted; else null.
function call(op, want, send) {
  const tags = { op }
  for (let tries = 1; ; tries++) {
    const r = send({ tags: { op, name: op }, responseCallback: http.expectedStatuses(...want) })
    requests.add(1, tags)
    if (want.includes(r.status)) return r
    const repeat = again.includes(r.status)
    if (repeat) retryable.add(1, tags)
    console.warn(`${new Date().toISOString()} ${op}: ${r.status} ${r.error || r.body}`)
    if (!repeat || tries === 5) {
      failed.add(1, tags)
      return null
    }
    sleep(Number(r.headers['Retry-After'] || 0.5))
  }
}

const form = (params, fields) =>
  Object.assign(params, { headers: Object.assign(params.headers || {}, { 'Content-Type': 'application/x-www-form-urlencoded' }), ...fields })
const bearer = (params, token) => Object.assign(params, { headers: { Authorization: `Bearer ${token}` } })

function session(r, user) {
  const body = r.json()
  return { user, access: body.access_token, refresh: body.refresh_token, expires: Date.now() + body.expires_in * 1000, old: [] }
}

// login opens a session of a user by number; null when that failed.
export function login(user) {
  const body = { username: `${prefix}${user % users}`, password, refresh_delivery: 'body' }
  const r = call('login', [200], (params) => http.post(`${base}/auth/token`, body, form(params)))
  return r && session(r, user)
}

// alive is an answer to a living session's token, or null. 401 is a false logout.
function alive(s, op, want, send) {
  const r = call(op, [want, 401], send)
  if (!r || r.status === want) return r
  falseLogouts.add(1)
  failed.add(1, { op })
  console.error(`false logout: ${op} of ${prefix}${s.user % users}: ${r.body}`)
  s.lost = true
  return null
}

// fresh refreshes a session whose access token is about to expire.
function fresh(s) {
  if (s.expires - Date.now() < 30000) refresh(s)
}

export function verify(s) {
  fresh(s)
  alive(s, 'verify', 204, (params) => http.get(`${base}/auth/verify`, bearer(params, s.access)))
}

export function sessions(s) {
  fresh(s)
  const r = alive(s, 'sessions', 200, (params) => http.get(`${base}/auth/sessions`, bearer(params, s.access)))
  return r && r.json().sessions
}

export function refresh(s) {
  const r = alive(s, 'refresh', 200, (params) => http.post(`${base}/auth/refresh`, { refresh_token: s.refresh }, form(params)))
  if (!r) return false
  const next = session(r, s.user)
  Object.assign(s, { refresh: next.refresh, expires: next.expires, access: next.access, old: [s.access] })
  return true
}

// stampede refreshes with one token n times at once. All must succeed, with one
// refresh token: a new one, or within LATCHKEY_REFRESH_GRACE of the last refresh the
// same again.
export function stampede(s, n) {
  const send = (params) => ['POST', `${base}/auth/refresh`, { refresh_token: s.refresh }, form(params)]
  const answers = http.batch(Array.from({ length: n }, () => send({ tags: { op: 'refresh', name: 'refresh' } })))
  const next = answers.map((r) => {
    let first = r // of a call that has been made already
    return alive(s, 'refresh', 200, (params) => {
      const [method, url, body, p] = send(params)
      const given = first || http.request(method, url, body, p)
      first = null
      return given
    })
  }).filter((r) => r)
  const successors = new Set(next.map((r) => r.json('refresh_token')))
  if (successors.size > 1) splitSuccessors.add(successors.size - 1)
  if (next.length === 0) return
  const got = session(next[0], s.user)
  Object.assign(s, { refresh: got.refresh, expires: got.expires, old: next.map((r) => r.json('access_token')), access: got.access })
}

// end logs a session out, and checks that it is over everywhere.
export function end(s) {
  if (!s.lost && call('logout', [200], (params) => http.post(`${base}/auth/logout`, null, bearer(params, s.access)))) over([s])
}

// endAll logs a user out everywhere by one of the sessions given, which are all.
// When an answer is lost the token may be dead by the next try: that is a success.
export function endAll(all) {
  if (call('logout_all', [200, 401], (params) => http.post(`${base}/auth/logout-all`, null, bearer(params, all[0].access)))) over(all)
}

// over asks each replica for each access token of sessions that have been logged
// out, and the service for a refresh.
function over(all) {
  const expected = { tags: { op: 'after_logout', name: 'after_logout' }, responseCallback: http.expectedStatuses(401) }
  const questions = []
  for (const s of all) {
    for (const token of [s.access, ...s.old]) {
      for (const url of replicas) questions.push(['GET', `${url}/auth/verify`, null, bearer({ ...expected }, token)])
    }
    questions.push(['POST', `${base}/auth/refresh`, { refresh_token: s.refresh }, form({ ...expected })])
  }
  for (const r of http.batch(questions)) {
    if (r.status === 401) refusedAfterLogout.add(1)
    else if (again.includes(r.status)) unansweredAfterLogout.add(1)
    else {
      acceptedAfterLogout.add(1)
      console.error(`after a logout: ${r.request.method} ${r.request.url}: ${r.status}`)
    }
  }
}

// own are the sessions of this virtual user.
const own = []
const weights = (__ENV.MIX || '1000:50:5:5').split(':').map(Number)

let begun = false

// mix does one operation: a check, a refresh, a login or a logout, in these weights.
// opened are the sessions that prepare has opened.
export function mix(opened) {
  const user = exec.vu.idInTest
  if (!begun && opened[user - 1]) own.push(opened[user - 1])
  begun = true
  if (own.length === 0) {
    const s = login(user)
    if (s) own.push(s)
    return
  }
  let at = Math.random() * weights.reduce((sum, w) => sum + w, 0)
  const which = weights.findIndex((w) => (at -= w) < 0)
  const i = Math.floor(Math.random() * own.length)
  if (which === 0) verify(own[i])
  if (which === 1) refresh(own[i])
  if (which === 2) {
    const s = login(user)
    if (s) own.push(s)
  }
  if (which === 3) end(own.splice(i, 1)[0])
  if (own[i] && own[i].lost) own.splice(i, 1)
}
