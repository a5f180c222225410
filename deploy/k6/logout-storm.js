// Logout-everywhere storm: every user logs out everywhere at once, as after a
// breach. Each of VUS (10, at most USERS) users opens SESSIONS (5) sessions and ends
// them all by one request; then no replica may take any of their tokens. For
// DURATION (1m).

import exec from 'k6/execution'
import { duration, endAll, login, options as of, prepare, users, verify, vus } from './latchkey.js'
export { handleSummary } from './summary.js'

export const options = of('logout_storm', { executor: 'constant-vus', vus: vus(10), duration: duration('1m'), gracefulStop: '30s' }, {
  refused_after_logout: ['count>0'],
})
export function setup() {
  // To log one user out everywhere is to end what another virtual user has of it.
  if (vus(10) > users) exec.test.abort(`VUS=${vus(10)} is more than USERS=${users}`)
  prepare(0)
}

export default function () {
  const all = []
  for (let i = 0; i < Number(__ENV.SESSIONS || 5); i++) {
    const s = login(exec.vu.idInTest)
    if (s) all.push(s)
  }
  if (all.length === 0) return
  all.forEach(verify)
  endAll(all)
}
