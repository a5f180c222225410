// Login ramp: how many logins a second does it take? Each is followed by a logout.
// From 1/s to RATE (20) over DURATION (2m). Beyond what the password workers do,
// logins are answered 503: to retry, and no failure.

import exec from 'k6/execution'
import { duration, end, login, options as of, prepare, rate, vus } from './latchkey.js'
export { handleSummary } from './summary.js'

export const options = of('login_ramp', {
  executor: 'ramping-arrival-rate', startRate: 1, timeUnit: '1s', preAllocatedVUs: vus(40), maxVUs: vus(40),
  stages: [{ duration: duration('2m'), target: rate(20) }],
})
export const setup = () => prepare(0)

export default function () {
  const s = login(exec.scenario.iterationInTest)
  if (s) end(s)
}
