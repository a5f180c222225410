// Breakpoint: the steady mix, ever faster, to RATE (20000) a second over DURATION
// (10m), until a threshold is missed, which ends the run: the rate at that moment is
// the result. Correctness must hold beyond it.

import { duration, mix, options as of, prepare, rate, vus } from './latchkey.js'
export { handleSummary } from './summary.js'

const p95 = __ENV.P95_VERIFY || 100
const enough = (threshold) => [{ threshold, abortOnFail: true, delayAbortEval: '5s' }]

export const options = of('breakpoint', {
  executor: 'ramping-arrival-rate', startRate: 10, timeUnit: '1s', preAllocatedVUs: vus(100), maxVUs: vus(100),
  stages: [{ duration: duration('10m'), target: rate(20000) }],
}, {
  'http_req_duration{op:verify}': enough(`p(95)<${p95}`),
  failed: enough('count==0'),
  dropped_iterations: enough('count<100'),
})
export const setup = () => prepare(vus(100))

export default mix
