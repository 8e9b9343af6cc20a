// RATE requests a second for SECONDS, of the paths in PATHS (JSON) in turns; the summary goes to the file SUMMARY names.
import http from 'k6/http';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';

const paths = JSON.parse(__ENV.PATHS);

// What failures were; 0 is no answer at all.
const statuses = Object.fromEntries([0, 400, 401, 429, 500, 503, 504].map((status) => [status, new Counter(`status_${status}`)]));

export const options = {
  scenarios: {
    steady: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE),
      timeUnit: '1s',
      duration: `${__ENV.SECONDS}s`,
      preAllocatedVUs: 20,
      maxVUs: 200,
    },
  },
  discardResponseBodies: true,
  summaryTrendStats: ['med', 'p(99)', 'max'],
};

export default function () {
  const path = paths[exec.scenario.iterationInTest % paths.length];
  const answer = http.get(`${__ENV.URL}${path}`, { headers: { 'x-api-key': __ENV.KEY } });
  statuses[answer.status]?.add(1);
}

export function handleSummary(data) {
  const { http_reqs, http_req_failed, http_req_duration, dropped_iterations } = data.metrics;
  const failures = Object.entries(data.metrics).filter(([name]) => name.startsWith('status_'));
  return {
    [__ENV.SUMMARY]: JSON.stringify({
      ...Object.fromEntries(failures.map(([name, metric]) => [name, metric.values.count])),
      requests: http_reqs.values.count,
      rate: http_reqs.values.rate,
      failed: http_req_failed.values.passes,
      dropped: dropped_iterations ? dropped_iterations.values.count : 0,
      p50: http_req_duration.values.med,
      p99: http_req_duration.values['p(99)'],
      max: http_req_duration.values.max,
    }),
  };
}
