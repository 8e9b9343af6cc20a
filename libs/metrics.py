"""Every figure that a process publishes for Prometheus, in one place, and the endpoint it is read from.

Called where things happen: the interceptor, the warehouse, the cipher, the executions, the scheduler's jobs. A label is
a word of ours (an rpc, a statement's file, a reason), never an id of a tenant, a run or a request: those are in the
logs. ``deploy/observability`` draws these figures and warns by them; a test holds the names there against these.
"""

from __future__ import annotations

import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_RUN_SECONDS = (5, 15, 30, 60, 120, 300, 600, 1_200, 3_600, 10_800)

# --- calls ---

RPCS = Counter(
    "convergence_rpcs", "Calls served, by how they ended; the reason is that of the error.", ["rpc", "code", "reason"]
)
RPC_SECONDS = Histogram("convergence_rpc_seconds", "How long calls took, in seconds.", ["rpc"], buckets=_SECONDS)
RPCS_RUNNING = Gauge("convergence_rpcs_running", "Calls being served now.")

# --- the warehouse ---

STATEMENTS = Counter(
    "convergence_statements",
    "Statements sent to BigQuery, by the operation (rpc or background work) that needed them.",
    ["statement", "operation"],
)
STATEMENT_SECONDS = Histogram(
    "convergence_statement_seconds", "How long statements took, tries included.", ["statement"], buckets=_SECONDS
)
STATEMENT_FAILURES = Counter(
    "convergence_statement_failures", "Statements that ended in an error.", ["statement", "reason"]
)
BYTES_BILLED = Counter("convergence_bytes_billed", "Bytes that BigQuery billed for statements.", ["statement"])

# --- what is remembered instead of asked for ---

CACHE_READS = Counter(
    "convergence_cache_reads",
    "Questions answered from memory (hit) or by asking (miss), by cache.",
    ["cache", "outcome"],
)

# --- keys and secrets ---

KMS_CALLS = Counter("convergence_kms_calls", "Calls of Cloud KMS.", ["operation", "outcome"])
# Without labels, so that it begins at zero: Prometheus sees an increase only of what was there before, and a single
# event raises the alarm.
SECRETS_UNREADABLE = Counter("convergence_secrets_unreadable", "Stored secrets that KMS or their own tag refused.")
KEYS_READ = Gauge("convergence_keys_read_timestamp_seconds", "When the API keys were last read, as a Unix time.")

# --- runs ---

RUNS_LIVE = Gauge("convergence_runs_live", "Attempts this executor works on.")
RUNS_ENDED = Counter(
    "convergence_runs_ended",
    "Attempts this executor ended, by status and by outcome or reason of the failure.",
    ["provider", "domain", "status", "outcome"],
)
RUN_SECONDS = Histogram(
    "convergence_run_seconds", "How long attempts took.", ["provider", "domain"], buckets=_RUN_SECONDS
)
ROWS_PUBLISHED = Counter("convergence_rows_published", "Rows published to tenants' tables.", ["provider", "domain"])
ROWS_QUARANTINED = Counter(
    "convergence_rows_quarantined",
    "Rows of published runs that break a rule and were kept apart.",
    ["provider", "domain"],
)
LEASES_LIVE = Gauge("convergence_leases_live", "Leases of grants this executor renews.")
LEASES_LOST = Counter("convergence_leases_lost", "Leases that tenant answered as lost.")
GRANTS_REAPED = Counter(
    "convergence_grants_reaped", "Grants of lost owners that were closed, by what they became.", ["state"]
)

# --- the scheduler ---

QUEUE_RUNS = Gauge("convergence_queue_runs", "Rows of the queue, by state.", ["state"])
QUEUE_AGE = Gauge("convergence_queue_age_seconds", "How long the oldest run that could start has been waiting.")
SCHEDULE_LAG = Gauge("convergence_schedule_lag_seconds", "How long the schedule that is most overdue has been due.")
QUEUE_READ = Gauge("convergence_queue_read_timestamp_seconds", "When the queue's figures were read, as a Unix time.")
JOBS_ENDED = Counter("convergence_jobs_ended", "Calls of the three jobs, by outcome.", ["job", "outcome"])
JOB_ENDED_AT = Gauge("convergence_job_ok_timestamp_seconds", "When a job last ended well, as a Unix time.", ["job"])
INVARIANT_VIOLATIONS = Gauge(
    "convergence_invariant_violations", "How often what must never be is so, by invariant.", ["invariant"]
)


class Endpoint:
    """Serves the figures as text on one address, from ``open`` to ``close``, in a thread of its own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Binds the address (port 0 takes any); raises ``OSError`` if it is taken."""
        host, _, port = self.address.rpartition(":")
        self._server, self._thread = start_http_server(int(port), host.strip("[]"), REGISTRY)
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Answers no more."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None
