// Steady reads of one path by VUS connections for SECONDS; the summary goes to the file that SUMMARY names.
import http from 'k6/http';

export const options = {
  vus: Number(__ENV.VUS),
  duration: `${__ENV.SECONDS}s`,
  discardResponseBodies: true,
  summaryTrendStats: ['med', 'p(99)'],
};

export default function () {
  http.get(__ENV.URL, { headers: { 'x-api-key': __ENV.KEY } });
}

export function handleSummary(data) {
  const { http_reqs, http_req_failed, http_req_duration } = data.metrics;
  return {
    [__ENV.SUMMARY]: JSON.stringify({
      requests: http_reqs.values.count,
      rate: http_reqs.values.rate,
      failed: http_req_failed.values.passes,
      p50: http_req_duration.values.med,
      p99: http_req_duration.values['p(99)'],
    }),
  };
}
