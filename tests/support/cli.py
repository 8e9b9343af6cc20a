"""The command line against a real gRPC server that answers as a test says and remembers what it was asked."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import typer.testing
from google.protobuf import json_format, message_factory
from google.protobuf.message import Message

from libs import errors, grpc_errors
from libs.tls import Tls
from services.cli import api
from services.cli.main import app
from services.cli.profiles import Profile, Profiles

KEY = "cvg_test_0123456789ab_" + "S3cretS3cret" * 4
REQUEST_ID = "0b1c2d3e-aaaa-bbbb-cccc-123456789abc"

# Typer builds its commands anew for every invocation, which is most of what one takes here.
typer.testing._get_command = functools.cache(typer.testing._get_command)

type Answer = Mapping[str, Any] | errors.Error | Callable[[Mapping[str, Any]], Any]


@dataclass
class Gateway:
    """Every public rpc: ``answers`` by name (``tenant.GetTenant``), an empty message where there is none."""

    answers: dict[str, Answer] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    address: str = ""

    def asked(self, rpc: str) -> list[dict[str, Any]]:
        """The requests of one rpc so far, in their JSON form."""
        return [request for name, request, _ in self.calls if name == rpc]

    def handler(self, context: str, method: Any) -> grpc.RpcMethodHandler:
        """Serves one method."""
        request_class = message_factory.GetMessageClass(method.input_type)
        answer_class = message_factory.GetMessageClass(method.output_type)
        name = f"{context}.{method.name}"

        def heard(request: Message, call: grpc.ServicerContext) -> Any:
            body = json_format.MessageToDict(request, preserving_proto_field_name=True)
            self.calls.append((name, body, dict(call.invocation_metadata())))
            answer = self.answers.get(name, {})
            return answer(body) if callable(answer) else answer

        def fail(error: errors.Error, call: grpc.ServicerContext) -> None:
            # As from behind Envoy: an answer without a body is all headers.
            call.set_trailing_metadata((*grpc_errors.trailers(error), ("x-request-id", REQUEST_ID)))
            call.abort(grpc_errors.code_of(error), grpc_errors.to_status(error).message)

        def one(request: Message, call: grpc.ServicerContext) -> Message:
            answer = heard(request, call)
            if isinstance(answer, errors.Error):
                fail(answer, call)
            call.send_initial_metadata([("x-request-id", REQUEST_ID)])
            return json_format.ParseDict(answer, answer_class())

        def many(request: Message, call: grpc.ServicerContext) -> Iterator[Message]:
            for answer in heard(request, call) or ():
                if isinstance(answer, errors.Error):
                    fail(answer, call)
                yield json_format.ParseDict(answer, answer_class())

        make, serve = (
            (grpc.unary_stream_rpc_method_handler, many)
            if method.server_streaming
            else (grpc.unary_unary_rpc_method_handler, one)
        )
        return make(serve, request_class.FromString, lambda message: message.SerializeToString())


@contextmanager
def serving(tls: Tls | None = None) -> Iterator[Gateway]:
    """A gateway on a free port; in plain text unless it has a certificate."""
    gateway = Gateway()
    server = grpc.server(ThreadPoolExecutor(4))
    for context in api.SERVICES:
        methods = {method.name: gateway.handler(context, method) for method in api._methods(context)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(api._service(context), methods)])
    if tls is None:
        gateway.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    else:
        credentials = grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.certificate.read_bytes())])
        gateway.address = f"https://127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    server.start()
    try:
        yield gateway
    finally:
        server.stop(0).wait()


@dataclass
class Terminal:
    """Somebody who calls the command line: with a configuration directory of their own, and no terminal."""

    directory: Path

    @property
    def profiles(self) -> Profiles:
        """What is stored."""
        return Profiles(self.directory, {})

    def sign_in(self, url: str, *, tenant_id: str = "acme", role: str = "ADMIN", name: str = "default") -> None:
        """Stores a profile, as ``login`` does."""
        self.profiles.save(
            Profile(name=name, url=url, api_key=KEY, tenant_id=tenant_id, role=role, api_key_id="0123456789ab")
        )

    def run(self, *argv: str, stdin: str = "", env: Mapping[str, str] | None = None) -> typer.testing.Result:
        """Runs ``convergence`` with these arguments."""
        mine = {
            "CONVERGENCE_CONFIG_DIR": str(self.directory),
            "NO_COLOR": "1",
            **dict.fromkeys(("CONVERGENCE_API_KEY", "CONVERGENCE_API_URL", "CONVERGENCE_PROFILE"), ""),
            "CONVERGENCE_TENANT": "",
        }
        return typer.testing.CliRunner().invoke(app, list(argv), input=stdin, env={**mine, **(env or {})})

    def json(self, *argv: str, **given: Any) -> Any:
        """What it answers with ``--output json``; it must end well."""
        result = self.run(*argv, "--output", "json", **given)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


def words(argv: Iterable[str]) -> str:
    """A command line as a test's name."""
    return " ".join(argv)
