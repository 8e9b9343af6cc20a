"""Writes ``openapi.json``, which the gateway serves beside ``docs.html``: the public contract as REST clients see it.

It follows from the ``.proto`` files alone (routes, comments, field rules, roles), so it cannot promise what the
contract does not. ``make proto`` writes it, it is committed, and ``tests/contract/test_openapi.py`` proves it fresh.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from buf.validate import validate_pb2
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor

from deploy.envoy.descriptors import PUBLIC_SERVICES
from libs import access

FILE = Path(__file__).with_name("openapi.json")
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
_ERROR: Schema = {
    "type": "object",
    "description": "google.rpc.Status. The first detail is an ErrorInfo, whose reason a program can switch on.",
    "properties": {
        "code": {"type": "integer", "format": "int32", "description": "The gRPC code."},
        "message": {"type": "string", "description": "What is wrong and what to do about it."},
        "details": {"type": "array", "items": {"type": "object", "properties": {"@type": {"type": "string"}}}},
    },
    "required": ["code", "message", "details"],
}
_ERRORS = {
    "400": "The request is wrong, or the state of the system forbids it.",
    "401": "No key, or none that is known.",
    "403": "A key whose role may not do this.",
    "404": "It does not exist, or is another tenant's: the answer is the same.",
    "409": "It exists already, or somebody else changed it meanwhile.",
    "429": "A quota or the rate limit is used up; Retry-After says when to come back.",
    "503": "A service did not answer; the same request may succeed later.",
}
_HEADERS = (
    ("X-User-ID", "Whom the client acts for; for the audit trail only. Empty is none.", False),
    ("Idempotency-Key", "The same key gives the same result; chosen by the client. Empty is none.", True),
)


def document(contract: descriptor_pb2.FileDescriptorSet) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of the public services of a contract that carries its comments."""
    return _Writer(contract).document()


class _Writer:
    def __init__(self, contract: descriptor_pb2.FileDescriptorSet) -> None:
        self._comments = dict(_comments(contract))
        self._schemas: dict[str, Schema] = {}

    def document(self) -> dict[str, Any]:
        pool = descriptor_pool.Default()
        rules = access.rules_of(PUBLIC_SERVICES)
        paths: dict[str, dict[str, Any]] = {}
        tags = []
        for name in PUBLIC_SERVICES:
            service = pool.FindServiceByName(name)
            tags.append({"name": service.name, "description": self._comments.get(name, "")})
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
                "title": "Convergence",
                "version": "v1",
                "description": "Cloud cost and compliance data as clean, per-tenant BigQuery tables.",
            },
            "security": [{"api_key": []}],
            "tags": tags,
            "paths": paths,
            "components": {
                "securitySchemes": {"api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
                "schemas": {"Error": _ERROR, **dict(sorted(self._schemas.items()))},
                "responses": {
                    status: {"description": text, "content": {"application/json": {"schema": _ref("Error")}}}
                    for status, text in _ERRORS.items()
                },
            },
        }

    def _operation(self, method: MethodDescriptor, verb: str, path: str, rule: access.Rule) -> dict[str, Any]:
        in_path = re.findall(r"\{(\w+)\}", path)
        fields = method.input_type.fields_by_name
        rest = [field for field in method.input_type.fields if field.name not in in_path]
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": self._field(fields[name])} for name in in_path
        ]
        operation: dict[str, Any] = {
            "operationId": f"{method.containing_service.name}_{method.name}",
            "tags": [method.containing_service.name],
            "description": self._comments.get(method.full_name, ""),
            "x-role": rule.role,
            "parameters": parameters,
        }
        if verb in ("get", "delete"):
            parameters += [{"name": field.name, "in": "query", "schema": self._field(field)} for field in rest]
        else:
            schema = self._object(method.input_type, rest)
            operation["requestBody"] = {
                "required": bool(schema.get("required")),
                "content": {"application/json": {"schema": schema}},
            }
        for name, text, writes in _HEADERS:
            if not writes or verb == "post":
                limits = {"type": "string", "maxLength": 128}
                parameters.append({"name": name, "in": "header", "description": text, "schema": limits})
        answer = {"schema": self._message(method.output_type)}
        kinds = ("application/json", "text/event-stream") if method.server_streaming else ("application/json",)
        good = "One object a line, or one server-sent event each." if method.server_streaming else "Done."
        operation["responses"] = {"200": {"description": good, "content": dict.fromkeys(kinds, answer)}}
        operation["responses"] |= {status: {"$ref": f"#/components/responses/{status}"} for status in _ERRORS}
        if rule.role == "ONBOARDER":
            operation["security"] = [{"api_key": []}, {}]
        return operation

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


def _comments(contract: descriptor_pb2.FileDescriptorSet) -> Iterator[tuple[str, str]]:
    """The leading comment of everything that has one, by full name."""
    for file in contract.file:
        if file.package.startswith("convergence."):
            for location in file.source_code_info.location:
                if location.leading_comments and (name := _name_at(file, list(location.path))):
                    yield name, " ".join(location.leading_comments.split())


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
