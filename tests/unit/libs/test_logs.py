"""Logs: one JSON object a line, with the call's ids, without secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from libs import caller, logs
from libs.tenancy import Caller, Role

KEY = "cvg_live_abcdef0123456789"
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines(capsys)]


@pytest.mark.parametrize(
    "text",
    [
        f"key {KEY} refused",
        "cdp_test_0123456789abcdef",
        PEM,
        PEM.replace("\n", "\\n"),
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEvQIBADANBg (cut",
        "Authorization: Bearer MIIEvQIBADANBg",
        "authorization=Basic MIIEvQIBADANBg==",
        '{"private_key": "MIIEvQIBADANBg\\nMIIEvQIBADANBg"}',
        "{'client_secret': 'MIIEvQIBADANBg'}",
        "x-api-key: MIIEvQIBADANBg",
        "x-peer-token=MIIEvQIBADANBg",
        "https://a.blob.core.windows.net/c?sv=1&sig=MIIEvQIBADANBg%3D&se=2",
        "AccountName=a;AccountKey=MIIEvQIBADANBg==;",
        "https://s3/x?X-Amz-Signature=MIIEvQIBADANBg",
        "AKIAMIIEVQIBADANBGXX",
        "ya29.MIIEvQIBADANBg",
        "eyJhbGciOiJIUzI1NiJ9.MIIEvQIBADANBg.MIIEvQIBADANBg",
    ],
)
def test_text_that_looks_like_a_secret_is_cut_out(text: str) -> None:
    shown = logs.redact(text)
    assert "[redacted]" in shown
    for secret in ("MIIEvQIBADANBg", "MIIEVQ", "abcdef"):
        assert secret not in shown


@pytest.mark.parametrize(
    "text",
    [
        "run 6b9e1f0a-4d3e-4f2b-8a1c-0d9e8f7a6b5c of acme COMPLETED",
        "key_id=k1",
        "api_key_id: k1",
        "GET /v1/a?page_size=3",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert logs.redact(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "private_key",
        "privateKey",
        "x-api-key",
        "api_key",
        "credentials",
        "client_secret",
        "clientSecret",
        "password",
        "Authorization",
        "secret_access_key",
        "session_token",
        "sas_token",
        "peer_token",
        "ciphertext",
        "wrapped_dek",
        "private_key_id",
    ],
)
def test_fields_with_a_secrets_name_are_cut_out_however_deep(name: str) -> None:
    assert logs.redact({"a": [{name: "x"}]}) == {"a": [{name: "[redacted]"}]}


@pytest.mark.parametrize("name", ["next_page_token", "page_token", "api_key_id", "credential_id", "tenant_id", "keys"])
def test_fields_with_harmless_names_stay(name: str) -> None:
    assert logs.redact({name: "x"}) == {name: "x"}


def test_bytes_and_secrets_are_never_shown() -> None:
    assert logs.redact({"a": b"x", "b": SecretStr("x")}) == {"a": "[redacted]", "b": "[redacted]"}


def test_a_line_carries_the_ids_of_its_call(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", service="tenant")
    log = logs.get("x")
    with caller.bind(Caller(Role.ADMIN, "acme"), request_id="req-1"), logs.bound(run_id="r1"):
        log.info("run_started", rows=3)
    log.info("outside")
    inside, outside = lines(capsys)
    assert (inside["event"], inside["rows"], inside["level"], inside["service"]) == ("run_started", 3, "info", "tenant")
    assert (inside["tenant_id"], inside["request_id"], inside["run_id"]) == ("acme", "req-1", "r1")
    assert inside["timestamp"].endswith("Z")
    assert not {"tenant_id", "request_id", "run_id"} & outside.keys()


def test_the_standard_library_goes_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", service="tenant")
    logging.getLogger("third.party").warning("key %s", KEY, extra={"password": "x", "attempt": 2})
    logging.getLogger("third.party").debug("not shown")
    (line,) = lines(capsys)
    assert (line["event"], line["password"], line["attempt"]) == ("key [redacted]", "[redacted]", 2)
    assert line["logger"] == "third.party"


def test_an_exceptions_trace_is_redacted_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", service="tenant")
    try:
        raise ValueError(f"bad key {KEY}")
    except ValueError:
        logs.get("x").exception("failed", detail=ValueError(f"again {KEY}"))
    (line,) = lines(capsys)
    assert "Traceback" in line["exception"] and "ValueError: bad key [redacted]" in line["exception"]
    assert KEY not in json.dumps(line)


def test_a_header_that_is_no_text_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", service="tenant")
    log = logging.getLogger("grpc._cython.cygrpc")
    try:
        b"caf\xe9".decode()
    except UnicodeDecodeError:
        log.exception("Invalid encoding on %s", b"caf\xe9")
    log.error("something else")
    assert [line["event"] for line in lines(capsys)] == ["something else"]


def test_configuring_twice_does_not_double_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", service="tenant")
    logs.configure("INFO", service="tenant")
    logs.get("x").info("once")
    assert len(lines(capsys)) == 1
