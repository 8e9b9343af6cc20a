"""The OpenAPI document is fresh, complete, and holds together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.envoy import openapi
from tests.support.routes import routes

DOCUMENT: dict[str, Any] = json.loads(openapi.FILE.read_text())


def test_it_is_what_the_contract_says_now() -> None:
    assert openapi.FILE.read_text() == openapi.text(), "run `make proto`"


@pytest.mark.parametrize("route", routes(), ids=str)
def test_it_describes_every_route(route: Any) -> None:
    operation = DOCUMENT["paths"][route.template][route.verb.lower()]
    assert operation["description"]
    named = {parameter["name"] for parameter in operation["parameters"]}
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    fields = {field.name for field in route.method.input_type.fields}
    assert fields == (named | set(body.get("properties", {}))) - {"X-User-ID", "Idempotency-Key"}
    for parameter in operation["parameters"]:
        assert (parameter["in"] == "path") == ("{" + parameter["name"] + "}" in route.template)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_leads_somewhere() -> None:
    for reference in set(references(DOCUMENT)):
        here: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            here = here[part]


def test_every_field_is_explained() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for field, value in schema.get("properties", {}).items():
            assert name == "Error" or value.get("description"), f"{name}.{field}"


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for verbs in DOCUMENT["paths"].values() for operation in verbs.values()]
    assert len(ids) == len(set(ids)) == len(routes())


def test_no_internal_message_shows() -> None:
    names = DOCUMENT["components"]["schemas"]
    assert not [name for name in names if "Grant" in name or "Authenticate" in name or "OpenCredential" in name]
