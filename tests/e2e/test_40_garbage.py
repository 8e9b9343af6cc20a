"""What clients should not send: requests made from the API description, nonsense in lists, hostile tenant ids.

Nothing of it is a 5xx, nothing that breaks the description is accepted, and every refusal says why. ``SCHEMA_EXAMPLES``
(default 2) is the number of requests made for each operation, good and bad; ``SCHEMA_SEED`` draws others.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.support.hostile import HOSTILE_IDS
from tests.support.stack import Stack, Tenant

EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "2"))
SEED = int(os.environ.get("SCHEMA_SEED", "20251117"))
NAMES = (
    *("not_a_server_error", "negative_data_rejection", "response_schema_conformance"),
    *("status_code_conformance", "content_type_conformance"),
)
# Somebody's words, which a list compares and does not know.
FREE = {"service", "account", "region", "resource", "standard", "severity"}
NONSENSE = ("nonsense!", "-1", "'; DROP TABLE x; --", "%00", "1e999", "\u0430", "[]", "2025-13-45", " ", "A" * 5_000)
NO_SUCH_ID = "6b9e1f0a-4d3e-4f2b-8a1c-0d9e8f7a6b5c"


@pytest.fixture(scope="module")
def tenant(stack: Stack) -> Tenant:
    return stack.onboard()


@pytest.fixture(scope="module")
def ids(stack: Stack, tenant: Tenant) -> dict[str, str]:
    """What there is of the tenant's, by the name of the path's variable."""
    key = tenant.call("POST", f"/tenants/{tenant.tenant_id}/api-keys", {"role": "RUNNER"})
    wanted = {"provider": "gcp", "domain": "cost", "template": "billing"}
    schedule = tenant.call("POST", f"/scheduler/customer/{tenant.tenant_id}/pipelines", {**wanted, "cron": "0 5 1 1 *"})
    return {
        **wanted,
        "tenant_id": tenant.tenant_id,
        "credential_id": tenant.store_credential()["credential_id"],
        "api_key_id": key["api_key_id"],
        "config_id": schedule["config_id"],
        "pipeline_logging_id": NO_SUCH_ID,
        "run_id": NO_SUCH_ID,
        "backfill_id": NO_SUCH_ID,
    }


@pytest.fixture(scope="module")
def described(stack: Stack) -> dict[str, Any]:
    with stack.http() as http:
        document: dict[str, Any] = http.get("/openapi.json").json()
    return document


@pytest.mark.timeout(600)
def test_requests_made_from_the_description(
    stack: Stack, tenant: Tenant, ids: dict[str, str], described: dict[str, Any]
) -> None:
    load_all_checks()
    schema = schemathesis.openapi.from_dict(described)
    schema.config.base_url = stack.rest
    seen: Counter[int] = Counter()
    bounds = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            role = described["paths"][operation.path][operation.method.lower()]["x-role"]
            key = stack.admin_api_key if role in ("PLATFORM_ADMIN", "ONBOARDER") else tenant.key
            send = _sender(session, key, ids, seen)
            for mode in GenerationMode:
                seed(SEED)(bounds(given(operation.as_strategy(mode))(send)))()
    assert seen[200] > 20 and seen[400] > 50, seen


def _sender(session: requests.Session, key: str, ids: dict[str, str], seen: Counter[int]) -> Callable[[Any], None]:
    checks = CHECKS.get_by_names(NAMES)

    def send(case: Any) -> None:
        _aim(case, ids)
        answer = case.call(session=session, headers={"X-API-Key": key}, timeout=120)
        seen[answer.status_code] += 1
        if _unfinished(answer):
            return
        try:
            case.validate_response(answer, checks=checks)
        except BaseException as broken:
            broken.add_note(f"SCHEMA_SEED={SEED}: {case.method} {case.path} {case.query} {case.body}")
            raise

    return send


def _aim(case: Any, ids: dict[str, str]) -> None:
    """Points a request at what is there, but for the parts that were made wrong on purpose."""
    wrong = {place.value for place, part in case.meta.components.items() if part.mode is GenerationMode.NEGATIVE}
    if "" in case.query:
        # The gateway passes over a parameter without a name, but not over one that nobody knows.
        case.query.pop("")
        case.query["nobody_knows"] = "1"
    if case.path.endswith("/tenants/{tenant_id}") and case.method == "DELETE":
        case.path_parameters["tenant_id"] = "nobody_here"
    elif "path" not in wrong and "path_parameters" not in wrong:
        case.path_parameters.update({name: ids[name] for name in case.path_parameters})
    if case.path.endswith("/process-queue") and "body" not in wrong and isinstance(case.body, dict):
        case.body["time_budget_seconds"] = 1


def _unfinished(answer: Any) -> bool:
    """True for an rpc that says of itself that it is not there yet."""
    return answer.status_code == 501 and b"NOT_IMPLEMENTED" in answer.content


def test_nonsense_in_a_list_is_refused_and_named(stack: Stack, ids: dict[str, str], described: dict[str, Any]) -> None:
    asked = 0
    with stack.admin() as http:  # Whose requests are not limited.
        for path, operations in described["paths"].items():
            operation = operations.get("get")
            if operation is None:
                continue
            url = path.format_map(ids)
            for parameter in operation["parameters"]:
                name = parameter["name"]
                if parameter["in"] != "query" or name in FREE:
                    continue
                for value in NONSENSE:
                    answer = http.get(url, params={name: value})
                    if _unfinished(answer):
                        continue
                    where = f"{url}?{name}={value[:20]}: {answer.status_code} {answer.text[:300]}"
                    assert answer.status_code == 400, where
                    assert name in answer.json()["message"] and len(answer.json()["message"]) > len(name) + 5, where
                    asked += 1
    assert asked > 300


def test_hostile_tenant_ids_are_refused_to_the_platform_admin_too(stack: Stack) -> None:
    before = {dataset.dataset_id for dataset in stack.bigquery().list_datasets()}
    with stack.admin() as http:
        for hostile in HOSTILE_IDS:
            encoded = quote(hostile, safe="")
            body = {"tenant_id": hostile, "company_name": "C", "admin_email": "a@b.co", "subscription_plan": "STARTER"}
            for method, path, content in (
                ("POST", "/api/v1/tenants/onboard", body),
                ("GET", f"/api/v1/tenants/{encoded}", None),
                ("PATCH", f"/api/v1/tenants/{encoded}", {"company_name": "C"}),
                ("POST", f"/api/v1/tenants/{encoded}/credentials", stack.sample_credential),
                ("POST", f"/api/v1/pipelines/run/{encoded}/gcp/cost/billing", {"date": "2025-11-17"}),
                ("GET", f"/api/v1/pipelines/runs/{encoded}", None),
            ):
                answer = http.request(method, path, json=content)
                where = f"{method} {path[:80]}: {answer.status_code} {answer.text[:300]}"
                if path.startswith("/api/v1/tenants/") and not hostile and method == "GET":
                    continue  # A path that ends before the id is the list's.
                assert answer.status_code in (400, 404), where
                assert json.loads(answer.text).keys() == {"code", "message", "details"}, where
    assert {dataset.dataset_id for dataset in stack.bigquery().list_datasets()} == before
