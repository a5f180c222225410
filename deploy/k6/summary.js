// The table at the end of each run, and the same figures as JSON where SUMMARY says.

import { operations } from './latchkey.js'

export function handleSummary(data) {
  const metrics = data.metrics
  const of = (name, value) => (metrics[name] ? metrics[name].values[value] || 0 : 0)
  const count = (name) => of(name, 'count')
  const row = (...cells) => cells.map((c, i) => (i === 0 ? String(c).padEnd(12) : String(c).padStart(10))).join('')
  const ms = (n) => (n < 10 ? n.toFixed(1) : n.toFixed(0))
  const ran = data.state.testRunDurationMs / 1000

  const lines = ['', row('', 'requests', 'per s', 'failed', 'to retry', 'p50 ms', 'p95 ms', 'p99 ms', 'max ms')]
  for (const op of operations) {
    const n = count(`requests{op:${op}}`)
    if (n === 0) continue
    const took = `http_req_duration{op:${op}}`
    lines.push(row(op, n, (n / ran).toFixed(1), count(`failed{op:${op}}`), count(`retryable{op:${op}}`),
      ...['med', 'p(95)', 'p(99)', 'max'].map((stat) => ms(of(took, stat)))))
  }
  lines.push('',
    `after logouts   ${count('accepted_after_logout')} accepted, ${count('refused_after_logout')} refused, ${count('unanswered_after_logout')} not answered`,
    `false logouts   ${count('false_logouts')}`,
    `stampedes       ${count('split_successors')} with more than one successor`,
    `not started     ${count('dropped_iterations')} for want of virtual users`, '')

  const missed = []
  for (const [name, m] of Object.entries(metrics)) {
    for (const [rule, t] of Object.entries(m.thresholds || {})) if (!t.ok) missed.push(`MISSED: ${name}: ${rule}`)
  }
  lines.push(...(missed.length ? missed : ['all thresholds hold']), '', '')

  const out = { stdout: lines.join('\n') }
  if (__ENV.SUMMARY) out[__ENV.SUMMARY] = JSON.stringify(data, null, 2)
  return out
}
