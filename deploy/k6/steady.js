// Steady mix: what a day looks like. verify : refresh : login : logout are
// 1000 : 50 : 5 : 5 (MIX), RATE (200) operations a second for DURATION (5m).

import { duration, mix, options as of, prepare, rate, vus } from './latchkey.js'
export { handleSummary } from './summary.js'

export const options = of('steady', {
  executor: 'constant-arrival-rate', rate: rate(200), timeUnit: '1s', duration: duration('5m'),
  preAllocatedVUs: vus(30), maxVUs: vus(30),
}, { refused_after_logout: ['count>0'] })
export const setup = () => prepare(vus(30))

export default mix
