"""Writes ``openapi.json``, which the gateway serves and ``/docs`` shows: the public contract as REST clients see it.

It follows from the ``.proto`` files (routes, comments, field rules, roles) and from what the gateway answers by itself
(``replies``), so it cannot promise what the contract does not; only the examples are written by hand
(``examples.yaml``). ``make proto`` writes it, it is committed, and ``tests/contract/test_openapi.py`` proves it fresh.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from buf.validate import validate_pb2
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor

from deploy.envoy.descriptors import PUBLIC_SERVICES
from deploy.envoy.replies import REPLIES, Reply
from libs import access

FILE = Path(__file__).with_name("openapi.json")
_EXAMPLES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("examples.yaml").read_text())
_GENERATE = Path(__file__).resolve().parents[2] / "protos" / "generate.py"

type Schema = dict[str, Any]

_SCALARS: dict[int, Schema] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "format": "byte"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0},
    # JSON numbers are not exact beyond 2^53.
    FieldDescriptor.TYPE_INT64: {"type": "string", "format": "int64"},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "format": "uint64"},
}
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d{1,9})?s$"},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
}
_TIME = "2025-11-18T06:00:00Z"
_ERROR: Schema = {
    "type": "object",
    "description": "google.rpc.Status. The first detail is an ErrorInfo, whose reason a program can switch on.",
    "properties": {
        "code": {"type": "integer", "format": "int32", "description": "The gRPC code."},
        "message": {"type": "string", "description": "What is wrong and what to do about it."},
        "details": {
            "type": "array",
            "description": "An ErrorInfo; then, where they help, BadRequest, QuotaFailure, RetryInfo.",
            "items": {"type": "object", "properties": {"@type": {"type": "string"}}},
        },
    },
    "required": ["code", "message", "details"],
}
# Status, what it means, and one that a client meets; the gateway's own are in its table.
_ERRORS: tuple[tuple[str, str, Reply], ...] = (
    (
        "400",
        "The request is wrong, or the state of the system forbids it.",
        Reply(400, 3, "REQUEST_INVALID", "page_size: value must be greater than or equal to 0"),
    ),
    (
        "401",
        "No key, or none that is known.",
        Reply(401, 16, "API_KEY_MISSING", "Send exactly one API key in the x-api-key header."),
    ),
    (
        "403",
        "A key whose role may not do this.",
        Reply(403, 7, "ROLE_TOO_LOW", "This needs a key with role ADMIN."),
    ),
    (
        "404",
        "It does not exist, or is another tenant's: the answer is the same.",
        Reply(404, 5, "TENANT_NOT_FOUND", "Tenant not found."),
    ),
    (
        "409",
        "It exists already, or somebody else changed it meanwhile.",
        Reply(409, 10, "CONFLICT", "Somebody else changed the same thing. Read it, then try again."),
    ),
    *(
        (str(reply.status), text, reply)
        for reply in REPLIES
        for status, text in (
            (413, "The body is too large."),
            (429, "A quota or the rate limit is used up; Retry-After says when to come back."),
            (431, "The headers are too large, or too many."),
            (500, "A defect of ours; nothing of its cause is told. The log has it, under the x-request-id."),
            (503, "A service did not answer; the same request may succeed later."),
            (504, "A service answered too late; what was asked may have been done."),
        )
        if reply.status == status
    ),
)
_NO_BODY = ("413",)
_HEADERS: dict[str, Schema] = {
    "X-Request-Id": {
        "description": "Id of this request, in the log lines of every process that took part. Quote it in reports.",
        "schema": {"type": "string", "format": "uuid"},
    },
    "Retry-After": {
        "description": "Seconds after which to come back.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "X-RateLimit-Limit": {
        "description": "Requests that the tenant may send at once; refilled every second.",
        "schema": {"type": "integer"},
    },
    "X-RateLimit-Remaining": {"description": "Requests left of it now.", "schema": {"type": "integer"}},
    "X-RateLimit-Reset": {"description": "Seconds until some are given back.", "schema": {"type": "integer"}},
    "RateLimit": {
        "description": "The quota that is used up, and the seconds until it is given back.",
        "schema": {"type": "string"},
        "example": '"daily_runs";r=0;t=21600',
    },
    "RateLimit-Policy": {
        "description": "The plan's limit of that quota.",
        "schema": {"type": "string"},
        "example": '"daily_runs";q=25',
    },
    "WWW-Authenticate": {"description": "How to say who you are.", "schema": {"type": "string"}},
}
_ALWAYS = ("X-Request-Id",)
_COUNTED = (*_ALWAYS, "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
_MORE = {
    "401": (*_ALWAYS, "WWW-Authenticate"),
    "413": _ALWAYS,
    "429": (*_COUNTED, "Retry-After", "RateLimit", "RateLimit-Policy"),
    "431": (),
    "503": (*_COUNTED, "Retry-After"),
}
_USER_ID = {
    "name": "X-User-ID",
    "in": "header",
    "description": "Whom the client acts for; for the audit trail only, never authority. Empty is none.",
    "schema": {"type": "string", "maxLength": 128},
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Chosen by the client: the same key with the same body gives the same result, made once; with "
    "another body it is refused. Wins over `request_id` in the body. Empty is none.",
    "schema": {"type": "string", "maxLength": 128},
}
_ABOUT = """Cloud cost and compliance data as clean, per-tenant BigQuery tables.

**Keys.** Every path but this description takes one key in `X-API-Key`. A key belongs to one tenant and has a role:
`RUNNER` reads and runs, `ADMIN` also changes; what concerns all tenants takes the platform admin's key. Somebody else's
tenant answers exactly as one that does not exist. `GET /api/v1/whoami` says whose key it is.

**Lists** answer `next_page_token`; send it as `page_token` with the same filters for the next page, until it is empty.
`page_size` is 100 unless given, at most 1000. Each list says what its order is. A filter that can match nothing is
refused. **Times** are RFC 3339 in UTC, **dates** `YYYY-MM-DD`, **money** decimal strings, rows and bytes strings too:
no number is ever rounded on its way.

**Errors** are `{code, message, details}`; switch on `details[0].reason`, show `message`, quote `X-Request-Id`.
What the gateway itself answers:

| status | reason | what to do |
|---|---|---|
"""


def document(contract: descriptor_pb2.FileDescriptorSet) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of the public services of a contract that carries its comments."""
    return _Writer(contract).document()


class _Writer:
    def __init__(self, contract: descriptor_pb2.FileDescriptorSet) -> None:
        self._comments = dict(comments(contract.file))
        self._schemas: dict[str, Schema] = {}

    def document(self) -> dict[str, Any]:
        pool = descriptor_pool.Default()
        rules = access.rules_of(PUBLIC_SERVICES)
        paths: dict[str, dict[str, Any]] = {}
        tags = []
        for name in PUBLIC_SERVICES:
            service = pool.FindServiceByName(name)
            tags.append({"name": _tag(service.name), "description": self._comments.get(name, "")})
            for method in service.methods:
                http: Any = method.GetOptions().Extensions[annotations_pb2.http]  # type: ignore[index]
                for binding in (http, *http.additional_bindings):
                    verb = binding.WhichOneof("pattern")
                    path = getattr(binding, verb)
                    rule = rules[f"/{name}/{method.name}"]
                    paths.setdefault(path, {})[verb] = self._operation(method, verb, path, rule)
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Convergence API",
                "version": "v1",
                "description": _ABOUT + "".join(_row(reply) for reply in REPLIES),
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/", "description": "The gateway that serves this description."}],
            "security": [{"api_key": []}],
            "tags": tags,
            "paths": paths,
            "components": {
                "securitySchemes": {
                    "api_key": {
                        "type": "apiKey",
                        "in": "header",
                        "name": "X-API-Key",
                        "description": "One key, in one header. Onboarding answers the first one; it is shown once.",
                    }
                },
                "schemas": {"Error": _ERROR, **dict(sorted(self._schemas.items()))},
                "headers": _HEADERS,
                "responses": {
                    status: {
                        "description": text,
                        "headers": _headers(*_MORE.get(status, _COUNTED)),
                        "content": {"application/json": {"schema": _ref("Error"), "example": reply.body()}},
                    }
                    for status, text, reply in _ERRORS
                },
            },
        }

    def _operation(self, method: MethodDescriptor, verb: str, path: str, rule: access.Rule) -> dict[str, Any]:
        in_path = re.findall(r"\{(\w+)\}", path)
        fields = method.input_type.fields_by_name
        rest = [field for field in method.input_type.fields if field.name not in in_path]
        parameters: list[Schema] = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": self._field(fields[name]),
                "example": _EXAMPLES["values"][name],
            }
            for name in in_path
        ]
        text = self._comments.get(method.full_name, "")
        operation: dict[str, Any] = {
            "operationId": f"{method.containing_service.name}_{method.name}",
            "tags": [_tag(method.containing_service.name)],
            "summary": _summary(text),
            "description": f"{text}\n\n{_ROLES[rule.role]}",
            "x-role": rule.role,
            "parameters": parameters,
        }
        if verb in ("get", "delete"):
            shown = _EXAMPLES["queries"].get(method.name, {})
            parameters += [
                {"name": field.name, "in": "query", "schema": self._field(field)}
                | ({"example": shown[field.name]} if field.name in shown else {})
                for field in rest
            ]
        else:
            schema = self._object(method.input_type, rest)
            body = {"schema": schema, "example": _EXAMPLES["bodies"].get(method.name, {})}
            operation["requestBody"] = {
                "required": bool(schema.get("required")),
                "content": {"application/json": body},
            }
        parameters.append(_USER_ID)
        if verb == "post" and "request_id" in fields:
            parameters.append(_IDEMPOTENCY_KEY)
        operation["responses"] = self._responses(method, verb)
        if rule.role == "ONBOARDER":
            operation["security"] = [{"api_key": []}, {}]
        return operation

    def _responses(self, method: MethodDescriptor, verb: str) -> dict[str, Any]:
        answer = {"schema": self._message(method.output_type), "example": _example(method.output_type)}
        kinds = ("application/json", "text/event-stream") if method.server_streaming else ("application/json",)
        good = "Done."
        if method.server_streaming:
            good = "One JSON object a line as things happen; with `Accept: text/event-stream`, one event each."
        found: dict[str, Any] = {
            "200": {"description": good, "headers": _headers(*_COUNTED), "content": dict.fromkeys(kinds, answer)}
        }
        for status, _, _ in _ERRORS:
            if status not in _NO_BODY or verb not in ("get", "delete"):
                found[status] = {"$ref": f"#/components/responses/{status}"}
        return found

    def _message(self, message: Descriptor) -> Schema:
        if message.full_name in _WELL_KNOWN:
            return _WELL_KNOWN[message.full_name]
        name = message.full_name.removeprefix("convergence.")
        if name not in self._schemas:
            self._schemas[name] = {}  # a message may hold itself
            self._schemas[name] = self._object(message, list(message.fields))
        return _ref(name)

    def _object(self, message: Descriptor, fields: list[FieldDescriptor]) -> Schema:
        schema: Schema = {"type": "object", "properties": {field.name: self._field(field) for field in fields}}
        if text := self._comments.get(message.full_name):
            schema["description"] = text
        if required := [field.name for field in fields if _rules(field).required]:
            schema["required"] = required
        return schema

    def _field(self, field: FieldDescriptor) -> Schema:
        rules = _rules(field)
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            schema: Schema = {"type": "object", "additionalProperties": self._value(message.fields_by_name["value"])}
        elif field.is_repeated:
            schema = {"type": "array", "items": {**self._value(field), **_limits(rules.repeated.items)}}
            if rules.repeated.HasField("max_items"):
                schema["maxItems"] = rules.repeated.max_items
        else:
            schema = {**self._value(field), **_limits(rules)}
        text = self._comments.get(field.full_name)
        return {**schema, "description": text} if text else schema

    def _value(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None:
            return self._message(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        return _SCALARS[field.type]

    def _enum(self, enum: EnumDescriptor) -> Schema:
        return {"type": "string", "enum": [value.name for value in enum.values]}


_ROLES = {
    "ANY_KEY": "Takes any key.",
    "RUNNER": "Takes a key of the tenant, role `RUNNER` or `ADMIN`.",
    "ADMIN": "Takes a key of the tenant, role `ADMIN`.",
    "PLATFORM_ADMIN": "Takes the platform admin's key.",
    "ONBOARDER": "Takes the platform admin's key; where onboarding is open, none.",
}


def _example(message: Descriptor, depth: int = 0) -> Any:
    """A message as an answer would show it; what has no example is left out."""
    shown: dict[str, Any] = {}
    values = _EXAMPLES["values"]
    for field in message.fields:
        full = f"{message.name}.{field.name}"
        if full in _EXAMPLES["absent"]:
            continue
        value = values.get(full)
        inner = field.message_type
        if value is None and inner is not None and not inner.GetOptions().map_entry:
            if inner.full_name == "google.protobuf.Timestamp":
                value = _TIME
            elif inner.full_name == "google.protobuf.Struct":
                value = values.get(field.name, {})
            elif depth < 3:
                value = _example(inner, depth + 1)
            value = [value] if field.is_repeated and value is not None else value
        elif value is None and field.enum_type is not None:
            value = field.enum_type.values[1].name
        elif value is None and field.name == "next_page_token":
            value = ""
        elif value is None:
            value = _typed(field, values.get(field.name))
        if value is not None:
            shown[field.name] = value
    return shown


def _typed(field: FieldDescriptor, value: Any) -> Any:
    """The example of that name if it has the field's type; numbers of 64 bits are strings in JSON."""
    kind = _SCALARS.get(field.type, {}).get("type")
    if field.is_repeated:
        return value if isinstance(value, list | dict) else None
    if kind == "integer":
        return value if isinstance(value, int) and not isinstance(value, bool) else 0
    if kind == "boolean":
        return value if isinstance(value, bool) else False
    if _SCALARS.get(field.type, {}).get("format") in ("int64", "uint64"):
        return str(value) if isinstance(value, int) else "0"
    return value if isinstance(value, str) else None


def _tag(service: str) -> str:
    """What people call the things a service keeps: ``Tenants`` for ``TenantService``."""
    return service.removesuffix("Service") + "s"


def _summary(text: str) -> str:
    return re.split(r"[.:;]\s|[.]$", text, maxsplit=1)[0]


def _row(reply: Reply) -> str:
    message = "The message says what is malformed." if reply.message.startswith("%") else reply.message
    return f"| {reply.status} | `{reply.reason}` | {message} |\n"


def _headers(*names: str) -> dict[str, Schema]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    rules: validate_pb2.FieldRules = field.GetOptions().Extensions[validate_pb2.field]
    return rules


def _limits(rules: validate_pb2.FieldRules) -> Schema:
    """What JSON Schema can say of a field's rules; a field that may be left empty is not bound by a form."""
    found: Schema = {}
    kind = rules.WhichOneof("type")
    if kind == "string":
        text: Any = rules.string
        for ours, theirs in (("min_len", "minLength"), ("max_len", "maxLength"), ("pattern", "pattern")):
            if text.HasField(ours):
                found[theirs] = getattr(text, ours)
        form = text.WhichOneof("well_known")
        if form in ("uuid", "email") and rules.ignore != validate_pb2.IGNORE_IF_ZERO_VALUE:
            found["format"] = form
    elif kind == "int32":
        number: Any = rules.int32
        for ours, theirs in (
            ("gte", "minimum"),
            ("lte", "maximum"),
            ("gt", "exclusiveMinimum"),
            ("lt", "exclusiveMaximum"),
        ):
            if number.HasField(ours):
                found[theirs] = getattr(number, ours)
    return found


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def comments(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> Iterator[tuple[str, str]]:
    """The leading comment of everything of ours that has one, by full name."""
    for file in files:
        if file.package.startswith("convergence."):
            for location in file.source_code_info.location:
                if location.leading_comments and (name := _name_at(file, list(location.path))):
                    paragraphs = location.leading_comments.strip().split("\n\n")
                    yield name, "\n\n".join(" ".join(each.split()) for each in paragraphs)


def _name_at(file: descriptor_pb2.FileDescriptorProto, path: list[int]) -> str:
    """The full name of what a source location's path points at; empty for options and the like."""
    here: Any = file
    names = [file.package]
    while len(path) >= 2:
        field = here.DESCRIPTOR.fields_by_number.get(path[0])
        if field is None or not field.is_repeated or field.message_type is None:
            return ""
        here = getattr(here, field.name)[path[1]]
        if not hasattr(here, "name"):
            return ""
        names.append(here.name)
        path = path[2:]
    return "" if path else ".".join(names)


def text() -> str:
    """Returns the document of the ``.proto`` files as they are now; needs protoc, as ``make proto`` does."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "contracts.binpb"
        subprocess.run([sys.executable, str(_GENERATE), "--image", str(image)], check=True, stdout=subprocess.DEVNULL)
        contract = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    return json.dumps(document(contract), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="write the OpenAPI document of the public contract")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.parse_args().out.write_text(text())
