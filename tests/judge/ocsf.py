"""The outside judge of compliance findings: the JSON schema of OCSF 1.8.0, class 2003, as ``ocsf-json-schema`` has it.

Each source form goes through its own template on the emulator, three days of it, and every finding that is published
is held against the schema: new ones, changed ones, muted ones and closed ones. A form is a name, a template and its
scans, one a day; another source adds itself to ``FORMS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from libs.bigquery import Warehouse, build_client
from libs.tenancy import TenantId
from services.pipeline_executor.providers import prowler
from services.pipeline_executor.providers.extraction import Scope
from services.pipeline_executor.run_context import SourceEndpoints
from tests.conftest import Emulator
from tests.support import compliance_apis
from tests.support.compliance import ComplianceRuns, Planted, days, faults, finding, prowler_scan

SAMPLES = Path(__file__).parents[1] / "support" / "data" / "prowler"


@dataclass(frozen=True)
class Form:
    """A template and what it sees on one day after another."""

    pipeline: str
    scans: Callable[[], Sequence[Planted]]


@dataclass(frozen=True)
class Verdict:
    """What was published of a form, and what the schema says against it."""

    findings: int
    states: Mapping[str, int]
    faults: Sequence[str]


def sample(cloud: str, form: str) -> Sequence[Planted]:
    """Prowler's own example, and a day on which half of it is gone."""
    path = SAMPLES / f"example_output_{cloud}.{form}"
    read = prowler._csv_records if form == "csv" else prowler._json_records
    rows = [{"account_uid": account, "record": record} for account, record in read(path)]
    word = "STATUS" if form == "csv" else "status_code"
    scopes = [Scope(account) for account in sorted({row["account_uid"] for row in rows})]
    statuses = [json.loads(row["record"])[word] for row in rows]
    return [Planted(rows, statuses, scopes), Planted(rows[:2], statuses[:2], scopes)]


def made() -> Sequence[Planted]:
    """Three days with every state."""
    names = ("a", "b", "c", "d")
    return [
        prowler_scan([finding(name) for name in names]),
        prowler_scan([finding("a", status="PASS"), finding("b", muted=True), finding("c", status="MANUAL")]),
        prowler_scan([finding("a"), finding("b", muted=True), finding("e", frameworks={}, remediation=None)]),
    ]


def golden(dataset: str) -> Sequence[Planted]:
    """Findings of every kind that an API has, and a day on which the second half of them is gone."""
    items = [case.item for case in compliance_apis.GOLDEN[dataset]]
    return [compliance_apis.scan(dataset, items), compliance_apis.scan(dataset, items[: len(items) // 2])]


FORMS: dict[str, Form] = {
    **{
        f"{cloud} prowler, {'csv' if form == 'csv' else 'OCSF'}": Form(
            f"{cloud}/compliance/prowler", lambda cloud=cloud, form=form: sample(cloud, form)
        )
        for cloud in ("aws", "azure", "gcp")
        for form in ("ocsf.json", "csv")
    },
    "aws prowler, three days": Form("aws/compliance/prowler", made),
    **{
        f"{provider} {dataset}": Form(f"{provider}/compliance/{dataset}", lambda dataset=dataset: golden(dataset))
        for dataset, provider in compliance_apis.PROVIDERS.items()
    },
}


def verdicts(emulator: Emulator, folder: Path) -> Iterator[tuple[str, Verdict]]:
    """Every form with its verdict, each in a project of its own."""
    endpoints = SourceEndpoints(emulator.rest, emulator.grpc)
    for number, (name, form) in enumerate(FORMS.items()):
        with contextlib.closing(Warehouse(build_client(f"ocsf-{number}", endpoint=emulator.rest))) as warehouse:
            runs = ComplianceRuns(warehouse, TenantId("judged"), endpoints, folder / "staging")
            yield name, asyncio.run(_judge(runs, form))


async def _judge(runs: ComplianceRuns, form: Form) -> Verdict:
    await runs.prepare(form.pipeline.partition("/")[0])
    found: list[str] = []
    scans = form.scans()
    for day, scan in zip(days(len(scans)), scans, strict=True):
        await runs.run(form.pipeline, day, scan, parameters={"accept_drop": True})
        found += [fault for event in await runs.events() for fault in faults(event)]
    rows = await runs.rows("SELECT f.state, COUNT(*) AS n FROM compliance_findings AS f GROUP BY 1 ORDER BY 1")
    return Verdict(sum(row["n"] for row in rows), {row["state"]: row["n"] for row in rows}, sorted(set(found)))


def line(name: str, verdict: Verdict) -> str:
    """What is printed of a form."""
    states = ", ".join(f"{number} {state.lower()}" for state, number in verdict.states.items())
    return f"ocsf: {name}: {verdict.findings} findings ({states}), {len(verdict.faults)} faults against OCSF 1.8.0"
