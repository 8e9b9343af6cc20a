"""Compliance templates that read APIs: from the wire into the tenant's history, whole or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from libs import errors
from libs.bigquery import Warehouse
from libs.tenancy import TenantId
from services.pipeline_executor.domain import Outcome
from services.pipeline_executor.engine import Engine
from services.pipeline_executor.providers import paging
from services.pipeline_executor.retry import Retry
from services.pipeline_executor.run_context import RunContext, SourceEndpoints
from services.pipeline_executor.templates import Templates
from tests.conftest import Emulator
from tests.support.aws import running_moto
from tests.support.billing import MemoryJournal
from tests.support.cloud_apis import RefusedError
from tests.support.compliance import ComplianceRuns
from tests.support.compliance_apis import ACCOUNT, DATASETS, GOLDEN, ROLE, Served, asff, serving

TEMPLATES = Templates.load()
TODAY = datetime.now(UTC).date()


@pytest.fixture(scope="module")
def runs(warehouse: Warehouse, bigquery_emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> ComplianceRuns:
    endpoints = SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)
    made = ComplianceRuns(warehouse, TenantId("acme"), endpoints, tmp_path_factory.mktemp("staging"))
    asyncio.run(made.prepare("aws", "azure", "gcp"))
    return made


@pytest.fixture
def api(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(paging, "_CALLS", Retry(2, timedelta(milliseconds=1), timedelta(milliseconds=1)))
    with serving(request.param, tmp_path) as made:
        yield made


async def _no_wait(_: float) -> None:
    """Retries at once."""


async def run(
    runs: ComplianceRuns, pipeline: str, source: Any, secret: Any, **changes: Any
) -> tuple[Outcome, RunContext]:
    context = await runs.begin(pipeline, TODAY, source=source, secret=secret, **changes)
    return (await Engine(sleep=_no_wait).run(TEMPLATES.get(*pipeline.split("/")), context)).outcome, context


def plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ").rstrip("0").rstrip(".")
    return list(value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("api", DATASETS, indirect=True)
async def test_findings_of_every_kind_become_what_they_must(runs: ComplianceRuns, api: Served) -> None:
    golden = GOLDEN[api.dataset]
    api.fill([case.item for case in golden])
    outcome, context = await run(runs, api.pipeline, api.source, api.secret)
    assert outcome is Outcome.PUBLISHED
    assert isinstance(context.journal, MemoryJournal)
    assert context.journal.failed() == set()
    rows = await runs.rows(
        f"""SELECT h.*, TO_JSON_STRING(h.raw_data) AS raw FROM compliance_history AS h
        WHERE h.source = '{api.dataset}'"""
    )
    assert len(rows) == len(golden)
    for case in golden:
        [row] = [row for row in rows if case.item in (raw := json.loads(row["raw"]), *raw.values())]
        assert {name: plain(row[name]) for name in case.becomes} == dict(case.becomes)
        assert row["check_uid"] in row["controls"]


@pytest.mark.parametrize("api", ["policy_states"], indirect=True)
async def test_a_source_that_dies_at_page_7_of_10_changes_nothing_and_resumes(
    runs: ComplianceRuns, api: Served
) -> None:
    before = await runs.rows("SELECT COUNT(*) AS n FROM compliance_history AS h")
    items = [{**item, "subscriptionId": "other"} for item in api.many(30)]
    api.fill(items)
    tries = next(
        step for step in TEMPLATES.get(*api.pipeline.split("/")).steps if step.name == "extract"
    ).retry.attempts
    api.listing.faults[(api.scope, 6)] = [RefusedError(503, "ServiceUnavailable") for _ in range(2 * tries)]
    with pytest.raises(errors.Unavailable) as caught:
        await run(runs, api.pipeline, api.source, api.secret)
    assert caught.value.reason == "SOURCE_UNAVAILABLE"
    assert api.asked() == [*range(6), *[6] * 2 * tries]
    assert before == await runs.rows("SELECT COUNT(*) AS n FROM compliance_history AS h")
    # It comes back while the step still tries: pages 1 to 6 are not asked for again.
    api.listing.asked.clear()
    api.listing.faults[(api.scope, 6)] = [RefusedError(503, "ServiceUnavailable") for _ in range(3)]
    outcome, _ = await run(runs, api.pipeline, api.source, api.secret)
    assert outcome is Outcome.PUBLISHED
    assert api.asked() == [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 7, 8, 9]
    [found] = await runs.rows("SELECT COUNT(*) AS n FROM compliance_history AS h WHERE h.account_uid = 'other'")
    assert found["n"] == 30


async def test_security_hub_by_moto_and_an_assumed_role(runs: ComplianceRuns, tmp_path: Path) -> None:
    with running_moto(tmp_path) as moto:
        hub = moto.client("securityhub")
        for start in range(0, 250, 50):
            findings = [asff(number) for number in range(start, start + 50)]
            hub.batch_import_findings(
                Findings=[{key: value for key, value in finding.items() if key != "NewHere"} for finding in findings]
            )
        source = {"regions": ["us-east-1"], "endpoint_url": moto.endpoint}
        outcome, context = await run(
            runs, "aws/compliance/securityhub_findings", source, ROLE, parameters={"product_name": ""}
        )
    assert outcome is Outcome.PUBLISHED
    assert isinstance(context.journal, MemoryJournal)
    [found] = await runs.rows(
        f"""SELECT COUNT(DISTINCT h.resource_uid) AS n FROM compliance_history AS h
        WHERE h.account_uid = '{ACCOUNT}' AND h.source = 'securityhub_findings' AND h.valid_to = '9999-12-31'
          AND h.state != 'CLOSED'"""
    )
    assert found["n"] == 250
