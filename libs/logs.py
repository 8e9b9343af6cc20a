"""JSON logs on standard output, one object a line, with the ids of the call and without secrets.

Every process calls ``configure`` once. The standard library's loggers go the same way, so third-party lines are
redacted too. Redaction is a net under the rule that payloads and keys are never logged, not a replacement for it.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, cast

import structlog
from pydantic import SecretStr

from libs import caller

_REDACTED = "[redacted]"
_SECRET_NAMES = re.compile(
    r"(?:^|[_.])(?:authorization|cookie|password|passwd|secret|token|api_?key|private_?key(?:_id)?|sas|signature"
    r"|access_?key(?:_id)?|credentials?|plaintext|ciphertext|dek|connection_?string|admin_?key)$"
)
_CAMEL_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# Names that end like a secret's and hold none.
_PLAIN_NAMES = frozenset({"next_page_token", "page_token"})
_SECRET_TEXT = re.compile(
    r"""
      \bc(?:vg|dp)_[A-Za-z0-9_\-]{6,}                                       # API keys
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----.*?(?:-----END[ A-Z]*PRIVATE\ KEY-----|\Z)
    | \b(?:bearer|basic)\s+[A-Za-z0-9+/=_\-.~]{8,}
    | \bya29\.[A-Za-z0-9_\-.]+                                              # Google access tokens
    | \beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*             # JWTs
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b
    | (?<=[?&;])(?:sig|key|access_token|X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-Signature)=[^&\s"']+
    | (?<=AccountKey=)[A-Za-z0-9+/=]{8,}
    | (?<=SharedAccessSignature=)[^;\s"']+
    | (?P<field>["']?(?:private_key|client_secret|secret_access_key|session_token|sas_token|(?:x-)?api[_-]key
        |x-peer-token|password|authorization)["']?\s*[:=]\s*)
      (?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?:(?:bearer|basic)\s+)?[^\s,;}"']+)
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
# Text without any of these matches none of the shapes above; most text has none, and looking is cheap.
_MARK = re.compile(r"[=: ]|-----|cvg_|cdp_|ya29\.|eyj|akia|asia", re.IGNORECASE)
# Exactly these hold no secret; a subclass might.
_PLAIN = frozenset({int, float, bool, type(None)})
# Fields of each line that are made here or checked where they come in.
_OURS = frozenset({"level", "logger", "timestamp", "service", "request_id", "trace_id"})
_MAX_TEXT = 8_000


def configure(level: str = "INFO", *, service: str) -> None:
    """Sends all logging of this process, structlog's and the standard library's, to standard output as JSON."""
    head: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_call_ids,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    encode = json.JSONEncoder(default=_printable, ensure_ascii=False).encode
    tail: list[structlog.types.Processor] = [
        _service_adder(service),
        _redact_event,
        # One encoder for all lines: making it costs as much as using it.
        structlog.processors.JSONRenderer(serializer=lambda event, **_: encode(event)),
    ]
    # Our own lines do not pass the standard library's records: that would double what a line costs a call.
    structlog.configure(
        processors=[_name_logger, *head, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *head, structlog.stdlib.ExtraAdder()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # These say at INFO what the call's own line says already.
    for noisy in ("uvicorn.access", "google.auth", "urllib3", "httpx", "grpc", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("grpc._cython.cygrpc").addFilter(_no_header_values)


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """Returns the logger of a module: ``log = logs.get(__name__)``; then ``log.info("run_started", run_id=…)``."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(logger_name=name))


@contextmanager
def bound(**ids: str) -> Iterator[None]:
    """Adds ids (``run_id``, ``tenant_id`` …) to every line logged inside the block and by tasks started in it."""
    with structlog.contextvars.bound_contextvars(**ids):
        yield


def redact(value: Any) -> Any:
    """Returns ``value`` with everything that looks like a secret replaced: by field name, and by shape inside text."""
    if type(value) in _PLAIN:
        return value
    match value:
        case str():
            if _MARK.search(value) is None:
                return value
            return _SECRET_TEXT.sub(lambda m: (m.group("field") or "") + _REDACTED, value)
        case bytes() | bytearray() | memoryview() | SecretStr():
            return _REDACTED
        case Mapping():
            return {key: _redacted(key, item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [redact(item) for item in value]
        case _:
            return value


def _redacted(name: object, value: Any) -> Any:
    return _REDACTED if value and _is_secret_name(name) else redact(value)


@functools.lru_cache(maxsize=2_000)
def _is_secret_name(key: object) -> bool:
    if not isinstance(key, str):
        return False
    name = _CAMEL_HUMP.sub("_", key).replace("-", "_").lower()
    return name not in _PLAIN_NAMES and _SECRET_NAMES.search(name) is not None


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: value if name in _OURS else _redacted(name, value) for name, value in event.items()}


def _no_header_values(record: logging.LogRecord) -> bool:
    # gRPC writes a traceback, with the value, for each header that is not UTF-8, several times a call: anybody could
    # fill the logs with it, and the value may be a secret. The call goes on with the value read as Latin-1.
    return not str(record.msg).startswith("Invalid encoding on")


def _name_logger(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # structlog's own parameter is called `logger`, so the name is bound under another word.
    event["logger"] = event.pop("logger_name", "")
    return event


def _add_call_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if request_id := caller.request_id():
        event.setdefault("request_id", request_id)
        if trace_id := caller.trace_id():
            event.setdefault("trace_id", trace_id)
        if tenant_id := caller.current().tenant_id:
            event.setdefault("tenant_id", tenant_id)
    return event


def _service_adder(service: str) -> structlog.types.Processor:
    def add(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    return add


def _printable(value: Any) -> str:
    # What JSON cannot hold (exceptions, messages, paths) is shown as text, and text may hold secrets.
    return cast(str, redact(str(value)))[:_MAX_TEXT]
