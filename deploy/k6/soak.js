// Soak: the steady mix for hours, RATE (100) a second for DURATION (4h). What it
// is for shows in the replicas' metrics and in Redis: memory, goroutines, keys.

import { duration, mix, options as of, prepare, rate, vus } from './latchkey.js'
export { handleSummary } from './summary.js'

export const options = of('soak', {
  executor: 'constant-arrival-rate', rate: rate(100), timeUnit: '1s', duration: duration('4h'),
  preAllocatedVUs: vus(30), maxVUs: vus(30),
}, { refused_after_logout: ['count>0'] })
export const setup = () => prepare(vus(30))

export default mix
