"""Prowler's own examples of three clouds, from three object stores to the answers of the REST API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.compliance import faults
from tests.support.gcs import Gcs, running_gcs
from tests.support.stack import Stack, Tenant

SAMPLES = Path(__file__).parents[1] / "support" / "data" / "prowler"
DAY, NEXT = "2025-02-14", "2025-02-15"
FOLDER = "security/scans"
# Three of Google Cloud's examples are of one check and, their ids being placeholders, of one resource.
FINDINGS = {"aws": 5, "azure": 5, "gcp": 3}


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gcs]:
    with running_gcs(tmp_path_factory.mktemp("gcs")) as made:
        yield made


def run(tenant: Tenant, provider: str, day: str, **source: str) -> dict[str, Any]:
    body = {"date": day, "parameters": {"source": {"prowler_prefix": FOLDER, **source}}}
    path = f"/pipelines/run/{tenant.tenant_id}/{provider}/compliance/prowler"
    ended = tenant.wait(tenant.call("POST", path, body)["pipeline_logging_id"])
    assert ended["status"] == "COMPLETED", ended
    return ended


def ask(tenant: Tenant, query: str) -> dict[str, Any]:
    return tenant.call("GET", f"/compliance/{tenant.tenant_id}?{query}")


def test_the_examples_of_three_clouds_become_answers(stack: Stack, gcs: Gcs) -> None:
    tenant = stack.onboard()
    bucket = gcs.bucket()
    objects = Path(stack.described["data_dir"]) / "objects"
    for provider, credential in stack.described["sample_credentials"].items():
        content = {
            "prowler-output-1-20250214142703.ocsf.json": (
                SAMPLES / f"example_output_{provider}.ocsf.json"
            ).read_bytes(),
            "prowler-output-1-20250214120000.ocsf.json": b"[]",
        }
        source = credential["source"]
        for name, text in content.items():
            match provider:
                case "gcp":
                    bucket.put(f"{FOLDER}/{name}", text)
                    continue
                case "aws":
                    folder = objects / "s3" / source["bucket"]
                case _:
                    folder = objects / "blob" / source["storage_account"] / source["container"]
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            (folder / FOLDER / name).write_bytes(text)
        body = {key: value for key, value in credential.items() if provider != "gcp" or key != "source"}
        tenant.call("POST", f"/tenants/{tenant.tenant_id}/credentials", body)
    for provider in FINDINGS:
        given = bucket.source() if provider == "gcp" else {}
        published = run(tenant, provider, DAY, **given)
        assert int(published["rows_published"]) == FINDINGS[provider]
        assert run(tenant, provider, NEXT, **given)["outcome"] == "NO_DATA"

    counts = {
        item["dimensions"]["provider"]: (item["failed"], item["passed"], item["undecided"])
        for item in ask(tenant, f"group_by=provider&end_date={DAY}")["compliance"]
    }
    assert counts == {
        "azure": (5, 0, 0),
        "aws": (2, 0, 3),
        "gcp": (2, 1, 0),
    }
    open_ones = ask(tenant, "group_by=severity&status=open")["compliance"]
    assert {item["dimensions"]["severity"]: item["failed"] for item in open_ones} == {
        "MEDIUM": 5, "LOW": 2, "HIGH": 1, "CRITICAL": 1,
    }  # fmt: skip
    [rate] = ask(tenant, "group_by=standard&standard=CIS-3.0&provider=gcp")["compliance"]
    assert (rate["passed"], rate["failed"], rate["pass_rate"]) == (1, 1, "0.5000")
    trend = ask(tenant, f"group_by=day&standard=CIS-3.0&provider=gcp&start_date=2025-02-13&end_date={NEXT}")[
        "compliance"
    ]
    assert [(item["dimensions"]["day"], item["pass_rate"]) for item in trend] == [(DAY, "0.5000"), (NEXT, "0.5000")]
    first = ask(tenant, f"changed_since={DAY}&page_size=10")
    rest = ask(tenant, f"changed_since={DAY}&page_size=10&page_token={first['next_page_token']}")
    changes = [*first["changes"], *rest["changes"]]
    assert (len(changes), rest["next_page_token"]) == (13, "")
    assert len({item["finding_uid"] for item in changes}) == 13
    assert {item["kind"] for item in changes} == {"NEW"}
    assert ask(tenant, f"changed_since={NEXT}")["changes"] == []
    resource = ask(tenant, "group_by=account&group_by=resource&provider=azure&page_size=1")["compliance"][0]
    assert set(resource["dimensions"]) == {"account", "resource"}

    rows = stack.rows("SELECT TO_JSON_STRING(f.ocsf) AS ocsf FROM compliance_findings AS f", dataset=tenant.tenant_id)
    assert len(rows) == 13
    assert [fault for row in rows for fault in faults(json.loads(row["ocsf"]))] == []
    rates = stack.rows("SELECT r.standard FROM compliance_pass_rates AS r", dataset=tenant.tenant_id)
    assert {row["standard"] for row in rates} >= {"CIS-3.0", "MITRE-ATTACK", "ENS-RD2022"}


def test_a_tenant_without_findings_has_none_and_a_bad_question_names_its_field(stack: Stack) -> None:
    tenant = stack.onboard()
    assert ask(tenant, "group_by=provider") == {"compliance": [], "changes": [], "next_page_token": ""}
    for query in ("group_by=color", "severity=awful", "changed_since=2025-02-30", "start_date=2025-02-14"):
        tenant.call("GET", f"/compliance/{tenant.tenant_id}?{query}", expect=400)
