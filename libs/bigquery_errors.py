"""What a failure of the BigQuery client means: one domain error each, whose text says what to do.

Called by ``libs.bigquery``. The message of an error is public: it never repeats the text of a dependency, which stays
in ``__cause__``.
"""

from __future__ import annotations

import concurrent.futures
import re
from collections.abc import Mapping

import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth

from libs import errors

_ASSERTION = re.compile(r"assert:([A-Z][A-Z0-9_]*)")
_CONFLICT = re.compile(r"could not serialize access|due to concurrent update", re.IGNORECASE)
_QUEUE_FULL = re.compile(r"too many DML statements outstanding", re.IGNORECASE)
_RATE_REASONS = frozenset({"rateLimitExceeded", "jobRateLimitExceeded", "quotaExceeded"})
TRANSIENT = (
    api.ServerError,
    api.TooManyRequests,
    api.RetryError,
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
    concurrent.futures.TimeoutError,
    auth.TransportError,
    ConnectionError,
)


def is_conflict(exc: BaseException) -> bool:
    """True if the statement lost against another one and changed nothing; by BigQuery's texts."""
    if isinstance(exc, errors.Aborted):
        return exc.reason == "STORE_CONFLICT"
    return isinstance(exc, api.GoogleAPICallError) and bool(_CONFLICT.search(str(exc)))


def _reasons(exc: api.GoogleAPICallError) -> set[str]:
    return {str(item.get("reason", "")) for item in exc.errors if isinstance(item, Mapping)}


def to_domain_error(exc: BaseException, what: str) -> errors.Error:
    """The domain error for a failure of the client library while doing ``what``; its text says what to do."""
    if isinstance(exc, errors.Error):
        return exc
    if isinstance(exc, TRANSIENT) and not isinstance(exc, api.GoogleAPICallError):
        return errors.Unavailable("STORE_UNAVAILABLE", "The store did not answer; try again.", statement=what)
    if isinstance(exc, auth.GoogleAuthError):
        return errors.FailedPrecondition(
            "STORE_ACCESS_DENIED", "The store refused the service's own credentials: check its service account."
        )
    if not isinstance(exc, api.GoogleAPICallError):
        return errors.Internal("STORE_REJECTED", "The store could not be used.", statement=what)
    return _from_call_error(exc, what)


def _from_call_error(exc: api.GoogleAPICallError, what: str) -> errors.Error:
    text, reasons = str(exc), _reasons(exc)
    if assertion := _ASSERTION.search(text):
        return errors.Aborted(assertion[1], "The state changed meanwhile; nothing was written.", statement=what)
    if is_conflict(exc):
        return errors.Aborted("STORE_CONFLICT", "Another write came first; read again.", statement=what)
    if _QUEUE_FULL.search(text) or reasons & _RATE_REASONS or isinstance(exc, api.TooManyRequests):
        return errors.Unavailable("STORE_RATE_LIMITED", "The store is at its rate limit; try again.", statement=what)
    if "bytesBilledLimitExceeded" in reasons:
        return errors.FailedPrecondition(
            "STORE_BYTES_LIMIT", "The query would read more than maximum_bytes_billed allows.", statement=what
        )
    if isinstance(exc, api.NotFound):
        return errors.FailedPrecondition(
            "STORE_OBJECT_MISSING",
            "A dataset or table does not exist yet: run `make setup-bigquery`, or store the tenant's credential first.",
            statement=what,
        )
    if isinstance(exc, api.Forbidden | api.Unauthorized):
        return errors.FailedPrecondition(
            "STORE_ACCESS_DENIED",
            "BigQuery refused access: grant roles/bigquery.dataEditor and roles/bigquery.jobUser to the service.",
            statement=what,
        )
    if isinstance(exc, api.ServerError):
        return errors.Unavailable("STORE_UNAVAILABLE", "The store did not answer; try again.", statement=what)
    return errors.Internal("STORE_REJECTED", "The store refused a statement.", statement=what)
