// Smoke: does everything work? One user, some seconds, before any other scenario.
// A browser's way too: with the refresh token in a cookie.

import http from 'k6/http'
import { check, sleep } from 'k6'
import { base, end, endAll, login, options as of, prepare, refresh, sessions, stampede, users, verify } from './latchkey.js'
export { handleSummary } from './summary.js'

export const options = of('smoke', { executor: 'per-vu-iterations', vus: 1, iterations: 5, maxDuration: '1m' }, { checks: ['rate==1'] })
export const setup = () => prepare(0)

export default function () {
  const user = users - 1
  const a = login(user), b = login(user)
  if (!a || !b) return
  for (const s of [a, b]) {
    verify(s)
    refresh(s)
    verify(s)
  }
  stampede(a, 2)
  check(sessions(a), { 'both sessions are listed': (list) => list && list.length >= 2 })
  end(b)
  verify(a) // another session's logout is none of this one's
  browser(user)
  endAll([a])
  sleep(1) // k6 draws no report of less than three seconds
}

function browser(user) {
  const body = { username: `${__ENV.USER_PREFIX || 'load-'}${user}`, password: __ENV.PASSWORD }
  const tags = { tags: { op: 'browser', name: 'browser' } }
  const cookie = (r) => (r.cookies.refresh_token ? `refresh_token=${r.cookies.refresh_token[0].value}` : '')
  const send = (path, from) => http.post(`${base}${path}`, null, { ...tags, jar: new http.CookieJar(), headers: { Cookie: cookie(from) } })
  const entered = http.post(`${base}/auth/token`, body, { ...tags, jar: new http.CookieJar() })
  const renewed = send('/auth/refresh', entered)
  const left = send('/auth/logout', renewed)
  const refused = send('/auth/refresh', renewed)
  check(null, {
    'a browser logs in': () => entered.status === 200 && cookie(entered) !== '' && !entered.json('refresh_token'),
    'a browser refreshes': () => renewed.status === 200 && cookie(renewed) !== cookie(entered),
    'a browser logs out': () => left.status === 200 && cookie(left) === 'refresh_token=',
    'and stays out': () => refused.status === 401,
  })
}
