// Refresh stampede: TABS (50) tabs of one browser wake up and all refresh with the
// same token at once. Every one must succeed, all with one refresh token, which must be
// good for the next stampede: late requests of the same browser. VUS (5) browsers for DURATION (1m).

import exec from 'k6/execution'
import { sleep } from 'k6'
import { duration, end, login, options as of, prepare, refresh, stampede, verify, vus } from './latchkey.js'
export { handleSummary } from './summary.js'

export const options = of('stampede', { executor: 'constant-vus', vus: vus(5), duration: duration('1m'), gracefulStop: '30s' }, {
  'http_req_duration{op:refresh}': [`p(95)<${__ENV.P95_REFRESH || 1000}`], // fifty at a time
})
export const setup = () => prepare(0)

export default function () {
  const s = login(exec.vu.idInTest)
  if (!s) return
  for (let wave = 0; wave < 3 && !s.lost; wave++) {
    stampede(s, Number(__ENV.TABS || 50))
    verify(s)
    refresh(s)
  }
  end(s)
  sleep(0.2)
}
