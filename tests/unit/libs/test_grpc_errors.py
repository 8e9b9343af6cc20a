"""Domain errors over the wire and back: nothing lost that is ours, nothing shown that is not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from libs import errors, grpc_errors

# What the gateway makes of each code is Envoy's table; it is tested with Envoy.
CODES = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Ambiguous: grpc.StatusCode.UNAVAILABLE,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Internal: grpc.StatusCode.INTERNAL,
}


class Failed(grpc.RpcError):
    """A failed call as a client sees it."""

    def __init__(self, code: grpc.StatusCode, trailers: Any = ()) -> None:
        super().__init__()
        self._code, self._trailers = code, trailers

    def code(self) -> grpc.StatusCode:
        return self._code

    def trailing_metadata(self) -> Any:
        return self._trailers


def over_the_wire(exc: BaseException) -> errors.Error:
    return grpc_errors.from_rpc_error(Failed(grpc_errors.code_of(exc), grpc_errors.trailers(exc)))


@pytest.mark.parametrize("kind", CODES)
def test_every_kind_comes_back_as_itself(kind: type[errors.Error]) -> None:
    sent = kind("A_REASON", "What to do.", run_id="r1")
    assert grpc_errors.code_of(sent) is CODES[kind]
    got = over_the_wire(sent)
    assert type(got) is kind and got.reason == "A_REASON"
    if kind is errors.Internal:
        assert "What to do" not in got.message and got.metadata == {}
    else:
        assert (got.message, got.metadata) == ("What to do.", {"run_id": "r1"})


def test_details_come_back_whole() -> None:
    sent = errors.ResourceExhausted(
        "QUOTA_EXHAUSTED",
        "No runs left today.",
        retry_after=timedelta(hours=1, seconds=0.5),
        quota_violations=[errors.QuotaViolation("tenant:acme", "DAILY_RUNS", 6, "six runs a day")],
        field_violations=[errors.FieldViolation("credentials.private_key", "must be PEM")],
    )
    got = over_the_wire(sent)
    assert got.retry_after == sent.retry_after
    assert got.quota_violations == sent.quota_violations
    assert got.field_violations == sent.field_violations


def test_a_refusal_says_when_to_come_back() -> None:
    quota = errors.QuotaViolation("tenant:acme", "DAILY_RUNS", 6, "six runs a day")
    trailers = dict(
        grpc_errors.trailers(
            errors.ResourceExhausted("Q", "q", retry_after=timedelta(seconds=76.2), quota_violations=[quota])
        )
    )
    assert trailers["retry-after"] == "77"
    assert trailers["ratelimit"] == '"daily_runs";r=0;t=77'
    assert trailers["ratelimit-policy"] == '"daily_runs";q=6'


@pytest.mark.parametrize("wait", [timedelta(), timedelta(seconds=-3), timedelta(microseconds=1)])
def test_a_wait_is_at_least_one_second(wait: timedelta) -> None:
    trailers = dict(grpc_errors.trailers(errors.Unavailable("BUSY", "Busy.", retry_after=wait)))
    assert trailers["retry-after"] == "1"


@pytest.mark.parametrize(
    "exc", [ValueError("password=hunter2"), KeyError("row"), RuntimeError(), errors.Internal("BUG", "password=hunter2")]
)
def test_a_defect_shows_nothing_of_itself(exc: Exception) -> None:
    status = grpc_errors.to_status(exc)
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert b"hunter2" not in status.SerializeToString()
    assert "x-request-id" in status.message


def test_a_timeout_may_be_tried_again() -> None:
    assert grpc_errors.code_of(TimeoutError("connect 10.0.0.7")) is grpc.StatusCode.UNAVAILABLE
    assert "10.0.0.7" not in grpc_errors.to_status(TimeoutError("connect 10.0.0.7")).message


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.Unavailable),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        # A dependency's overload is not a tenant's quota.
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Unavailable),
        (grpc.StatusCode.ABORTED, errors.Aborted),
        (grpc.StatusCode.UNKNOWN, errors.Internal),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Internal),
        (grpc.StatusCode.INTERNAL, errors.Internal),
        (grpc.StatusCode.DATA_LOSS, errors.Internal),
        (grpc.StatusCode.NOT_FOUND, errors.Internal),
        (grpc.StatusCode.PERMISSION_DENIED, errors.Internal),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Internal),
    ],
)
def test_codes_without_our_details_keep_only_what_they_mean(code: grpc.StatusCode, kind: type[errors.Error]) -> None:
    assert type(grpc_errors.from_rpc_error(Failed(code))) is kind
    assert type(grpc_errors.from_rpc_error(Failed(code, [(grpc_errors.STATUS_KEY, b"\xff\xff")]))) is kind


def test_another_domains_details_are_not_ours() -> None:
    status = status_pb2.Status(code=5, message="private")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="X", domain="googleapis.com"))
    failed = Failed(grpc.StatusCode.NOT_FOUND, [(grpc_errors.STATUS_KEY, status.SerializeToString())])
    assert type(grpc_errors.from_rpc_error(failed)) is errors.Internal


@pytest.mark.parametrize("reason", ["PEER_UNKNOWN", "PEER_NOT_ALLOWED"])
def test_a_refused_token_of_ours_is_not_the_users_fault(reason: str) -> None:
    assert type(over_the_wire(errors.Unauthenticated(reason, "Who are you?"))) is errors.Internal


def test_a_downstream_error_that_leaks_through_is_mapped() -> None:
    assert grpc_errors.code_of(Failed(grpc.StatusCode.UNKNOWN)) is grpc.StatusCode.INTERNAL
    assert grpc_errors.code_of(Failed(grpc.StatusCode.DEADLINE_EXCEEDED)) is grpc.StatusCode.UNAVAILABLE


def test_a_status_fits_into_metadata_whatever_the_request_held() -> None:
    huge = "x" * 100_000
    error = errors.InvalidArgument(
        "REQUEST_INVALID",
        huge,
        field_violations=[errors.FieldViolation(huge, huge)] * 1_000,
        quota_violations=[errors.QuotaViolation("s", "Q", 1, huge)] * 1_000,
        note=huge,
    )
    size = sum(len(key) + len(value) for key, value in grpc_errors.trailers(error))
    assert size < 12_000
