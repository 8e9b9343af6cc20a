"""The GCP extractor's answers to what can go wrong: which error, retryable or not, and never a secret."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth

from libs import errors
from services.pipeline_executor.providers import check_source
from services.pipeline_executor.providers.gcp import source_error


def refused(kind: type[api.GoogleAPICallError], reason: str = "", message: str = "text of Google") -> Exception:
    return kind(message, errors=[{"reason": reason, "message": message}])


@pytest.mark.parametrize(
    ("cause", "reason", "retryable"),
    [
        (refused(api.NotFound, "notFound"), "SOURCE_NOT_FOUND", False),
        (refused(api.Forbidden, "accessDenied"), "SOURCE_ACCESS_DENIED", False),
        (api.PermissionDenied("bigquery.readsessions.create"), "SOURCE_ACCESS_DENIED", False),
        (refused(api.Forbidden, "rateLimitExceeded"), "SOURCE_THROTTLED", True),
        (refused(api.Forbidden, "quotaExceeded"), "SOURCE_THROTTLED", True),
        (api.ResourceExhausted("reads"), "SOURCE_THROTTLED", True),
        (refused(api.Unauthorized, "authError"), "CREDENTIAL_REJECTED", False),
        (api.Unauthenticated("token"), "CREDENTIAL_REJECTED", False),
        (auth.RefreshError("invalid_grant"), "CREDENTIAL_REJECTED", False),
        (auth.TransportError("dns"), "SOURCE_UNAVAILABLE", True),
        (refused(api.InternalServerError, "backendError"), "SOURCE_UNAVAILABLE", True),
        (api.ServiceUnavailable("gone"), "SOURCE_UNAVAILABLE", True),
        (api.DeadlineExceeded("late"), "SOURCE_UNAVAILABLE", True),
        (api.RetryError("late", cause=Exception()), "SOURCE_UNAVAILABLE", True),
        (requests.exceptions.ConnectionError("reset"), "SOURCE_UNAVAILABLE", True),
        (requests.exceptions.ReadTimeout("late"), "SOURCE_UNAVAILABLE", True),
        (refused(api.BadRequest, "invalidQuery", "Invalid NUMERIC value: NaN"), "SOURCE_VALUE_INVALID", False),
        (refused(api.BadRequest, "bytesBilledLimitExceeded"), "SOURCE_TOO_LARGE", False),
        (refused(api.BadRequest, "invalid", "Unrecognized name"), "SOURCE_REFUSED", False),
        (KeyError("private_key"), "SOURCE_FAILED", False),
        (OSError(errno.ENOSPC, "No space left on device"), "STAGING_FULL", True),
        (OSError(errno.EIO, "I/O error"), "SOURCE_FAILED", False),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "SOURCE_UNAVAILABLE", True),
        (errors.Aborted("X", "ours"), "X", False),
    ],
)
def test_a_failure_of_the_customers_cloud_says_what_to_do(cause: Exception, reason: str, retryable: bool) -> None:
    error = source_error(cause)
    assert (error.reason, error.retryable) == (reason, retryable)
    assert "text of Google" not in error.message
    assert "private_key" not in error.message


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"project_id": "acme-billing"},
        {"project_id": "example.com:acme-billing", "dataset_id": "b", "table_id": "t", "location": "europe-west1"},
        {"dataset_id": "billing_export", "table_id": "gcp_billing_export_v1_0A1B2C_3D4E5F_678901"},
    ],
)
def test_good_sources(source: dict[str, Any]) -> None:
    assert check_source("GCP", ["billing_export"], source) == source


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ({"projectid": "acme"}, "source.projectid"),
        ({"project_id": "ACME"}, "source.project_id"),
        ({"project_id": 5}, "source.project_id"),
        ({"project_id": "acme-billing", "dataset_id": "b`; DROP"}, "source.dataset_id"),
        ({"dataset_id": "b", "table_id": "t$20251117"}, "source.table_id"),
        ({"table_id": "t"}, "source.dataset_id"),
        ({"token_uri": "http://169.254.169.254"}, "source.token_uri"),
        ({"location": "US; x"}, "source.location"),
    ],
)
def test_bad_sources_name_the_field(source: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        check_source("gcp", ["billing_export"], source)
    assert caught.value.reason == "SOURCE_INVALID"
    assert [violation.field for violation in caught.value.field_violations] == [field]
    assert field in caught.value.message
    assert "169.254" not in caught.value.message


def test_an_unknown_provider_is_named() -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        check_source("nowhere", [], {})
    assert caught.value.reason == "PROVIDER_UNKNOWN"
