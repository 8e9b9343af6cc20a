"""The OpenAPI document is valid, fresh and complete, and its examples are what the contract accepts and answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import protovalidate
import pytest
from google.protobuf import json_format, message_factory
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from deploy.envoy import openapi
from deploy.envoy.replies import REPLIES
from tests.support.routes import Route, routes

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


def test_it_is_openapi() -> None:
    assert [str(error) for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def operation_of(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = DOCUMENT["paths"][route.template][route.verb.lower()]
    return operation


@pytest.mark.parametrize("route", routes(), ids=str)
def test_every_operation_has_a_summary_a_role_errors_and_a_request_id(route: Route) -> None:
    operation = operation_of(route)
    assert 5 < len(operation["summary"]) < 150 and not operation["summary"].endswith(".")
    assert operation["summary"] in operation["description"] and "key" in operation["description"]
    assert {"200", "400", "401", "403", "404", "409", "429", "500", "503", "504"} <= operation["responses"].keys()
    assert ("413" in operation["responses"]) == (route.verb in ("POST", "PATCH"))
    assert "X-Request-Id" in operation["responses"]["200"]["headers"]
    # The header is offered where the call is idempotent by it, and nowhere else.
    headers = {each["name"] for each in operation["parameters"] if each["in"] == "header"}
    idempotent = route.verb == "POST" and "request_id" in route.method.input_type.fields_by_name
    assert headers == {"X-User-ID"} | ({"Idempotency-Key"} if idempotent else set())


@pytest.mark.parametrize("route", routes(), ids=str)
def test_every_example_is_one(route: Route) -> None:
    operation = operation_of(route)
    request = message_factory.GetMessageClass(route.method.input_type)()
    given = {each["name"]: each["example"] for each in operation["parameters"] if "example" in each}
    assert given.keys() >= set(re.findall(r"\{(\w+)\}", route.template))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    json_format.ParseDict({**given, **body.get("example", {})}, request)
    assert protovalidate.Validator().collect_violations(request) == []
    for kind in operation["responses"]["200"]["content"].values():
        answer = json_format.ParseDict(kind["example"], message_factory.GetMessageClass(route.method.output_type)())
        assert answer.ListFields() or not route.method.output_type.fields
        schema = {**kind["schema"], "components": DOCUMENT["components"]}
        assert [error.message for error in Draft202012Validator(schema).iter_errors(kind["example"])] == []


def test_every_error_is_shown_with_its_reason_and_what_to_do() -> None:
    for status, response in DOCUMENT["components"]["responses"].items():
        example = response["content"]["application/json"]["example"]
        assert re.fullmatch("[A-Z][A-Z_]+", example["details"][0]["reason"]) and example["message"], status
    retried = {
        status for status, each in DOCUMENT["components"]["responses"].items() if "Retry-After" in each["headers"]
    }
    assert retried == {"429", "503"}
    assert "RateLimit-Policy" in DOCUMENT["components"]["responses"]["429"]["headers"]
    for reply in REPLIES:
        assert f"`{reply.reason}`" in DOCUMENT["info"]["description"]


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
