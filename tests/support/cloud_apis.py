"""Stand-ins for the APIs that no emulator has: AWS Config and Security Hub, Azure Resource Manager with Entra, and
Security Command Center, each in its own protocol over a real socket.

All of them list what a ``Listing`` holds, page by page. It also knows how they fail: throttled, broken, with a session
that ends or a position that is no longer known, at the page a test chooses.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import grpc
from google.cloud.securitycenter_v2 import ListFindingsRequest, ListFindingsResponse
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from tests.support.certificates import Authority

type Item = Mapping[str, Any]


class RefusedError(Exception):
    """An answer that is a failure: its HTTP status, the provider's word for it, and when to come back."""

    def __init__(self, status: int, code: str, retry_after: int | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.retry_after = retry_after


@dataclass
class Listing:
    """What is listed by scope, in pages; what was asked, as (scope, page); and which requests fail, each fault once.

    A session may ask for ``session_pages`` pages and has ended then. Positions end when ``generation`` changes.
    """

    pages: dict[str, list[Sequence[Item]]] = field(default_factory=dict)
    faults: dict[tuple[str, int], list[RefusedError]] = field(default_factory=dict)
    session_pages: int | None = None
    ended: RefusedError | None = None
    lost: RefusedError = field(default_factory=lambda: RefusedError(400, "InvalidNextTokenException"))
    generation: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    sessions: int = 0
    filters: list[Any] = field(default_factory=list)
    _used: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def sign_in(self) -> str:
        """A new session."""
        self.sessions += 1
        return f"session{self.sessions}"

    def answer(self, scope: str, token: str | None, session: str) -> tuple[Sequence[Item], str | None]:
        """One page and the position behind it."""
        number = 0
        if token:
            generation, _, position = base64.urlsafe_b64decode(token).decode().partition(".")
            if int(generation) != self.generation:
                raise self.lost
            number = int(position)
        self.asked.append((scope, number))
        self.times.append(time.monotonic())
        if faults := self.faults.get((scope, number)):
            raise faults.pop(0)
        if self.session_pages is not None and self._used[session] >= self.session_pages:
            assert self.ended is not None
            self._used[session] = 0  # Google's signatures of one second are the same.
            raise self.ended
        self._used[session] += 1
        pages = self.pages.get(scope, [])
        following = base64.urlsafe_b64encode(f"{self.generation}.{number + 1}".encode()).decode()
        return pages[number] if pages else (), following if number + 1 < len(pages) else None

    def items(self) -> list[Item]:
        """Everything that is listed."""
        return [item for pages in self.pages.values() for page in pages for item in page]


# ------------------------------------------------------------------------------------------------- HTTP


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """One answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def _json(status: int, body: Any, **headers: str) -> Answer:
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})


@contextlib.contextmanager
def _serving(respond: Callable[[Request], Answer], authority: Authority | None = None) -> Iterator[str]:
    """Serves on a port of its own, over TLS with an authority; the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = respond(Request(self.command, parts.path, dict(parse_qsl(parts.query)), headers, body))
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = handle_any

        def log_message(self, *_: Any) -> None:
            return None

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            return None  # A client that went away.

    server = Server(("127.0.0.1", 0), Handler)
    if authority is not None:
        tls = authority.issue("stand-in", address="127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"{'https' if authority else 'http'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# ------------------------------------------------------------------------------------------------- AWS


@contextlib.contextmanager
def security_hub(listing: Listing) -> Iterator[str]:
    """Security Hub's GetFindings and STS's AssumeRole; scopes are regions."""
    listing.ended = RefusedError(403, "ExpiredTokenException")
    listing.lost = RefusedError(400, "InvalidInputException")

    def respond(request: Request) -> Answer:
        if request.path == "/":
            return _assume_role(listing)
        assert (request.method, request.path) == ("POST", "/findings")
        asked = json.loads(request.body)
        listing.filters.append(asked["Filters"])
        key, region = _signer(request)

        def list_page() -> Any:
            items, following = listing.answer(region, asked.get("NextToken"), key)
            return {"Findings": items, "NextToken": following} if following else {"Findings": items}

        return _aws(list_page)

    with _serving(respond) as address:
        yield address


@contextlib.contextmanager
def aws_config(listing: Listing) -> Iterator[str]:
    """AWS Config's rules; scopes are the names of rules. An item with ``ConfigRule`` describes a rule, and is listed
    under the scope ``rules``."""
    listing.ended = RefusedError(400, "ExpiredTokenException")

    def respond(request: Request) -> Answer:
        key, region = _signer(request)
        asked = json.loads(request.body)
        rules = {item["ConfigRule"]["ConfigRuleName"]: item for page in listing.pages["rules"] for item in page}

        def describe_compliance() -> Any:
            items, following = listing.answer("rules", asked.get("NextToken"), key)
            found = [
                {"ConfigRuleName": item["ConfigRule"]["ConfigRuleName"], "Compliance": item["Compliance"]}
                for item in items
            ]
            return {"ComplianceByConfigRules": found} | ({"NextToken": following} if following else {})

        def describe_rules() -> Any:
            if missing := set(asked["ConfigRuleNames"]) - set(rules):
                raise RefusedError(400, f"NoSuchConfigRuleException:{missing}")
            return {"ConfigRules": [rules[name]["ConfigRule"] for name in asked["ConfigRuleNames"]]}

        def details() -> Any:
            items, following = listing.answer(asked["ConfigRuleName"], asked.get("NextToken"), key)
            return {"EvaluationResults": items} | ({"NextToken": following} if following else {})

        operation = {
            "DescribeComplianceByConfigRule": describe_compliance,
            "DescribeConfigRules": describe_rules,
            "GetComplianceDetailsByConfigRule": details,
        }[request.headers["x-amz-target"].removeprefix("StarlingDoveService.")]
        assert region
        return _aws(operation)

    with _serving(respond) as address:
        yield address


def _signer(request: Request) -> tuple[str, str]:
    found = re.search(r"Credential=([^/]+)/[0-9]{8}/([^/]+)/", request.headers["authorization"])
    assert found is not None
    return found[1], found[2]


def _aws(work: Callable[[], Any]) -> Answer:
    try:
        return _json(200, work())
    except RefusedError as refused:
        headers = {"x-amzn-errortype": refused.code.partition(":")[0]}
        if refused.retry_after is not None:
            headers["Retry-After"] = str(refused.retry_after)
        return _json(refused.status, {"__type": refused.code.partition(":")[0], "message": "secret text"}, **headers)


def _assume_role(listing: Listing) -> Answer:
    expires = datetime.now(UTC) + timedelta(hours=1)
    body = f"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
      <AccessKeyId>ASIA{listing.sign_in().upper()}</AccessKeyId><SecretAccessKey>{"s" * 40}</SecretAccessKey>
      <SessionToken>token</SessionToken><Expiration>{expires:%Y-%m-%dT%H:%M:%SZ}</Expiration>
      </Credentials></AssumeRoleResult></AssumeRoleResponse>"""
    return Answer(200, body.encode(), {"Content-Type": "text/xml"})


# ------------------------------------------------------------------------------------------------- Azure

_CODES = {401: "ExpiredAuthenticationToken", 403: "AuthorizationFailed", 404: "SubscriptionNotFound"}


@contextlib.contextmanager
def resource_manager(listing: Listing, authority: Authority) -> Iterator[str]:
    """Azure Policy, Defender for Cloud and Entra, over TLS; scopes are ids of subscriptions.

    What is listed under the scope ``metadata`` are the kinds of assessments.
    """
    listing.ended = RefusedError(401, "ExpiredAuthenticationToken")
    listing.lost = RefusedError(400, "InvalidSkipToken")

    def respond(request: Request) -> Answer:
        if request.path.endswith("/.well-known/openid-configuration"):
            base = f"https://{request.headers['host']}/{request.path.split('/')[1]}"
            return _json(
                200,
                {
                    "issuer": f"{base}/v2.0",
                    "token_endpoint": f"{base}/oauth2/v2.0/token",
                    "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                },
            )
        if request.path.endswith("/oauth2/v2.0/token"):
            form = parse_qs(request.body.decode())
            if form["client_secret"] == ["revoked-secret"]:
                return _json(401, {"error": "invalid_client", "error_description": "AADSTS7000215: secret text"})
            return _json(200, {"token_type": "Bearer", "expires_in": 3599, "access_token": listing.sign_in()})
        session = request.headers["authorization"].removeprefix("Bearer ")
        found = re.fullmatch(
            r"/subscriptions/([^/]+)/providers/(?:Microsoft\.PolicyInsights/policyStates/latest/(queryResults)"
            r"|Microsoft\.Security/(assessments|assessmentMetadata))",
            request.path,
        )
        assert found is not None, request.path
        assert request.method == ("POST" if found[2] else "GET")
        assert request.query["api-version"]
        scope = "metadata" if found[3] == "assessmentMetadata" else found[1]
        try:
            items, following = listing.answer(scope, request.query.get("$skiptoken"), session)
        except RefusedError as refused:
            after = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
            return _json(refused.status, {"error": {"code": refused.code, "message": "secret text"}}, **after)
        link = f"https://{request.headers['host']}{request.path}?api-version={request.query['api-version']}&$skiptoken={following}"
        if found[2]:
            return _json(
                200,
                {"@odata.count": len(items), "@odata.nextLink": link if following else None, "value": list(items)},
            )
        return _json(200, {"value": list(items)} | ({"nextLink": link} if following else {}))

    with _serving(respond, authority) as address:
        yield address


# ------------------------------------------------------------------------------------------------- Google Cloud

_GRPC = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


@contextlib.contextmanager
def security_center(listing: Listing) -> Iterator[str]:
    """Security Command Center over gRPC; scopes are what comes before ``/sources``. Every signature is a session."""
    listing.ended = RefusedError(401, "UNAUTHENTICATED")
    listing.lost = RefusedError(400, "INVALID_ARGUMENT")

    def list_findings(request: ListFindingsRequest, context: grpc.ServicerContext) -> ListFindingsResponse:
        sent = dict(context.invocation_metadata())
        assert sent["authorization"].startswith("Bearer ")
        assert request.parent.endswith("/sources/-/locations/global")
        listing.filters.append(request.filter)
        try:
            items, following = listing.answer(
                request.parent.partition("/sources")[0], request.page_token, sent["authorization"]
            )
        except RefusedError as refused:
            _abort(context, refused)
        results = [ListFindingsResponse.ListFindingsResult.from_json(json.dumps(item)) for item in items]
        return ListFindingsResponse(
            list_findings_results=results, next_page_token=following or "", total_size=len(listing.items())
        )

    handler = grpc.unary_unary_rpc_method_handler(
        list_findings,
        request_deserializer=ListFindingsRequest.deserialize,
        response_serializer=ListFindingsResponse.serialize,
    )
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "google.cloud.securitycenter.v2.SecurityCenter", {"ListFindings": handler}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def _abort(context: grpc.ServicerContext, refused: RefusedError) -> None:
    code = _GRPC[refused.status]
    if refused.retry_after is not None:
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=refused.retry_after)))
        status = status_pb2.Status(code=code.value[0], message="secret text", details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, "secret text")
