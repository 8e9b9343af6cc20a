"""The public API as calls by name: ``api.call("tenant.GetTenant", tenant_id="acme")``.

Requests are built from their JSON form, so enums are words and structs are dicts, and every name in them is the
contract's (``tests/contract/test_cli.py`` holds each against it). Errors leave as ``Failure``. Reads, and writes that
carry an idempotency key, are tried again while the gateway or what stands behind it is unavailable.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from services.cli.failures import of_rpc_error
from services.cli.profiles import Profile

if TYPE_CHECKING:
    import grpc
    from google.protobuf.descriptor import MethodDescriptor

SERVICES = {
    "tenant": "TenantService",
    "credential": "CredentialService",
    "pipeline_executor": "PipelineService",
    "scheduler": "ScheduleService",
}
_SECONDS = 32.0
# What the gateway waits longer for, and a little more.
_LONG = {
    "tenant.OnboardTenant": 62.0,
    "credential.CreateCredential": 62.0,
    "credential.ValidateCredential": 62.0,
    "scheduler.Trigger": 302.0,
    "scheduler.ProcessQueue": 302.0,
    "scheduler.ResetDailyQuotas": 302.0,
}
_READS = ("Get", "List", "Query", "Check")
# Always sent with a request_id.
IDEMPOTENT = frozenset(
    {
        "pipeline_executor.RunPipeline",
        "scheduler.CreateSchedule",
        "scheduler.RunSchedule",
        "scheduler.CreateBackfill",
    }
)
_RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.3s",
    "maxBackoff": "1s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_PAGE = 1000


class Api:
    """Calls over one channel with one key."""

    def __init__(self, channel: grpc.Channel, profile: Profile) -> None:
        self._channel = channel
        self._url = profile.url
        sent = (("x-api-key", profile.api_key), ("x-user-id", profile.user_id))
        self._metadata = tuple((key, value) for key, value in sent if value)

    def call(self, rpc: str, /, **given: Any) -> Any:
        """One call and its answer; fields that are ``None`` are left out."""
        import grpc

        method = _method(rpc)
        start = self._channel.unary_unary(_path(method), _serialise, _answer_class(method).FromString)
        try:
            return start(_request(method, given), timeout=_LONG.get(rpc, _SECONDS), metadata=self._metadata)
        except grpc.RpcError as error:
            raise of_rpc_error(error, self._url) from None

    def stream(self, rpc: str, /, **given: Any) -> Iterator[Any]:
        """The messages of a streaming call."""
        import grpc

        method = _method(rpc)
        start = self._channel.unary_stream(_path(method), _serialise, _answer_class(method).FromString)
        answers = start(_request(method, given), metadata=self._metadata)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise of_rpc_error(error, self._url) from None
        finally:
            answers.cancel()

    def pages(self, rpc: str, items: str, /, *, limit: int, **given: Any) -> Any:
        """The answer of a list with up to ``limit`` items (0: all of them), however many pages that takes."""
        whole: Any = None
        token = ""
        while True:
            left = limit - len(getattr(whole, items)) if limit and whole is not None else limit
            answer = self.call(rpc, page_size=min(left or _PAGE, _PAGE), page_token=token or None, **given)
            if whole is None:
                whole = answer
            else:
                getattr(whole, items).extend(getattr(answer, items))
                whole.next_page_token = answer.next_page_token
            token = answer.next_page_token
            if not token or (limit and len(getattr(whole, items)) >= limit):
                return whole

    def close(self) -> None:
        """Ends the channel."""
        self._channel.close()


def connect(profile: Profile) -> Api:
    """The API of a profile; nothing is sent before the first call."""
    # The core of gRPC writes its own account of a refused connection to stderr, beside ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # noqa: TID251  read by the library, not by us
    import grpc

    address = profile.address
    retried = [
        {"service": _service(context), "method": method.name}
        for context in SERVICES
        for method in _methods(context)
        if method.name.startswith(_READS) or f"{context}.{method.name}" in IDEMPOTENT
    ]
    options = [
        ("grpc.service_config", json.dumps({"methodConfig": [{"name": retried, "retryPolicy": _RETRY}]})),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.primary_user_agent", "convergence-cli"),
    ]
    if not address.tls:
        # A proxy would not find this machine's loopback.
        return Api(grpc.insecure_channel(address.target, [*options, ("grpc.enable_http_proxy", 0)]), profile)
    roots = None
    if profile.ca_file:
        with open(profile.ca_file, "rb") as file:
            roots = file.read()
    return Api(grpc.secure_channel(address.target, grpc.ssl_channel_credentials(roots), options), profile)


def rest_paths() -> set[str]:
    """Verb and path of every call of the contract, as the gateway serves it over REST."""
    from google.api import annotations_pb2

    found = set()
    for context in SERVICES:
        for method in _methods(context):
            options: Any = method.GetOptions()
            rule = options.Extensions[annotations_pb2.http]
            verb = rule.WhichOneof("pattern")
            found.add(f"{verb.upper()} {getattr(rule, verb)}")
    return found


def _module(context: str) -> Any:
    return importlib.import_module(f"convergence.{context}.v1.{context}_pb2")


def _service(context: str) -> str:
    return f"convergence.{context}.v1.{SERVICES[context]}"


def _methods(context: str) -> list[MethodDescriptor]:
    return list(_module(context).DESCRIPTOR.services_by_name[SERVICES[context]].methods)


def _method(rpc: str) -> MethodDescriptor:
    context, _, name = rpc.partition(".")
    found: MethodDescriptor = _module(context).DESCRIPTOR.services_by_name[SERVICES[context]].methods_by_name[name]
    return found


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _request(method: MethodDescriptor, given: dict[str, Any]) -> Any:
    from google.protobuf import json_format, message_factory

    message = message_factory.GetMessageClass(method.input_type)()
    return json_format.ParseDict({key: value for key, value in given.items() if value is not None}, message)


def _answer_class(method: MethodDescriptor) -> Any:
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(method.output_type)


def _serialise(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
