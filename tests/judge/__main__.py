"""``make judge``: the outside judge of FOCUS, ``focus-validator``, on what the project's own pipelines publish.

Per source form: the sample goes through the real pipeline on an emulator of its own, view ``focus_v1_2`` is written out
as parquet and judged, and one line beginning ``focus:`` is printed. The exit status is 1 if a check failed that is not
known to be faulty, or that failed only because of one. The validator lives in ``build/judge``, apart from ``.venv``: it
needs Python 3.12. Nothing but the package index is asked on the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deploy.local import sample_data
from libs.bigquery import Sql, Warehouse, build_client
from libs.errors import FailedPrecondition
from libs.tenancy import TenantId
from services.pipeline_executor.engine import Engine
from services.pipeline_executor.run_context import SourceEndpoints
from services.pipeline_executor.templates import Templates
from tests.conftest import Emulator, running_emulator
from tests.support import azure, azure_rows
from tests.support.azure import AzureRuns, Azurite, Storage, running_azurite
from tests.support.billing import Customer, TenantRuns, schema

ROOT = Path(__file__).parents[2]
VENV = ROOT / "build" / "judge"
# The validator pins numpy 1.26, for which newer pyarrow is too new.
PACKAGES = ("focus-validator==2.2.1", "pyarrow<22")
MODEL = "1.2.0.1"
# Checks of the validator's model that contradict the text of FOCUS 1.2, each with the reason.
FAULTY = {
    "InvoiceId-C-004-C": "the text asks for null where there is no invoice, the model has no condition",
    "InvoiceId-C-005-C": "the text asks for an id once an invoice is issued, the model has no condition",
    "CommitmentDiscountStatus-C-004-C": "the text asks for it where there is a commitment, the model where not",
    "CapacityReservationStatus-C-004-C": "the condition holds in the model, yet rows without a reservation fail",
}
_READ = Sql("judge/read_view.sql", "SELECT t.* FROM focus_v1_2 AS t")


@dataclass(frozen=True)
class Verdict:
    """What the validator said: ids of the checks that passed and failed, and how many it skipped."""

    passed: frozenset[str]
    failed: frozenset[str]
    skipped: int

    @property
    def unexpected(self) -> list[str]:
        """Failed checks that are neither faulty nor a summary of a check that failed below them."""
        leaves = {name for name, kind in _split(self.failed) if kind != "Composite"}
        summed_up = {name.partition("-")[0] for name in leaves} | {"CostAndUsage"}
        summaries = {name for name, kind in _split(self.failed) if kind == "Composite"}
        loose = {name for name in summaries if name.partition("-")[0] not in summed_up}
        return sorted((leaves - set(FAULTY)) | loose)


def _split(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name.partition(" :: ")[0], name.partition(" :: ")[2]) for name in names]


def read_verdict(path: Path) -> Verdict:
    """Reads the validator's JUnit report: its exit status is 0 whatever it found."""
    passed, failed, skipped = set(), set(), 0
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = case.get("name", "")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(name)
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed.add(name)
    return Verdict(frozenset(passed), frozenset(failed), skipped)


def install() -> Path:
    """Makes the validator's virtualenv once; its ``focus-validator``."""
    program, stamp = VENV / "bin" / "focus-validator", VENV / ".installed"
    if program.exists() and stamp.exists() and stamp.read_text() == "\n".join(PACKAGES):
        return program
    uv = shutil.which("uv", path=f"{os.environ.get('PATH', '')}:{ROOT / '.uv' / 'bin'}")
    if uv is None:
        raise SystemExit("error: uv is needed to make build/judge with Python 3.12; `make install` says how to get it")
    VENV.parent.mkdir(exist_ok=True)
    for command in (
        [uv, "venv", "--quiet", "--clear", "--no-project", "--python", "3.12", str(VENV)],
        [uv, "pip", "install", "--quiet", "--python", str(VENV / "bin" / "python"), *PACKAGES],
    ):
        subprocess.run(command, cwd=ROOT, check=True)
    stamp.write_text("\n".join(PACKAGES))
    return program


def judge(program: Path, data: Path) -> Verdict:
    """Runs the validator on one file with every criterion, so that conditional columns are judged too."""
    report = data.with_suffix(".xml")
    [packages] = VENV.glob("lib/python3.12/site-packages")
    command = [str(program), "--data-file", str(data), "--validate-version", MODEL, "--block-download"]
    command += ["--applicability-criteria", "ALL", "--output-type", "unittest", "--output-destination", str(report)]
    # It opens files of its own by paths relative to site-packages.
    done = subprocess.run(command, cwd=packages, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if not report.exists():
        raise SystemExit(f"error: focus-validator wrote no report:\n{done.stdout.decode(errors='replace')[-2000:]}")
    return read_verdict(report)


def standard() -> list[dict[str, Any]]:
    """The sample as a standard export has it."""
    return [*sample_data.generated(), *sample_data.planted()]


FORMS = {"gcp standard export": standard}

AZURE_FORMS: dict[str, Callable[[Storage], object]] = {
    "azure EA actual export, csv": lambda storage: storage.deliver(
        {"part_0_0001.csv": azure.sample_ea()}, period="20230901-20230930"
    ),
    "azure actual export, parquet": lambda storage: storage.deliver(
        {"part_0_0001.snappy.parquet": azure_rows.as_parquet(azure.sample_made())}
    ),
    "azure MCA actual and amortized exports, csv.gz": lambda storage: (
        storage.deliver({"a.csv.gz": gzip.compress(azure.exported(azure_rows.ACTUAL))}),
        storage.deliver(
            {"b.csv.gz": gzip.compress(azure.exported(azure_rows.AMORTIZED))}, export="amortized", kind="AmortizedCost"
        ),
    ),
}


async def publish(runs: TenantRuns, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sends the rows through gcp/cost/billing and returns the view's."""
    await runs.prepare()
    runs.customer.export(rows, fields=schema(without=()))
    context = await runs.begin(date(2025, 11, 1), date(2025, 11, 30))
    await Engine().run(Templates.load().get("gcp", "cost", "billing"), context)
    return await runs.warehouse.query(_READ, dataset=runs.tenant_id, timeout=300)


async def publish_azure(
    runs: AzureRuns, storage: Storage, deliver: Callable[[Storage], object]
) -> list[dict[str, Any]]:
    """Sends a delivery through azure/cost/billing and returns the view's rows."""
    await runs.prepare()
    deliver(storage)
    for first, last in ((date(2023, 9, 1), date(2023, 9, 30)), (date(2025, 11, 1), date(2025, 11, 30))):
        with contextlib.suppress(FailedPrecondition):
            context = await runs.begin(storage.source(), first, last)
            await Engine().run(Templates.load().get("azure", "cost", "billing"), context)
    return await runs.warehouse.query(_READ, dataset=runs.tenant_id, timeout=300)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the view as parquet in FOCUS's formats: in CSV the validator takes an id of digits for a number."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if any(isinstance(value, Decimal | float | int) for value in values):
            columns[name] = pa.array([None if value is None else float(value) for value in values], pa.float64())
        else:
            columns[name] = pa.array([_text(value) or None for value in values], pa.string())
    pq.write_table(pa.table(columns), path)


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case dict() | list():
            return json.dumps(value)
        case Decimal():
            return format(value, "f")
    return str(value)


def own_faults(rows: list[dict[str, Any]]) -> list[str]:
    """What the validator lets pass: letter case of allowed values, empty texts, order of columns, periods."""
    found = set()
    allowed = {
        "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
        "ChargeClass": {None, "Correction"},
        "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
        "PricingCategory": {None, "Standard", "Dynamic", "Committed", "Other"},
        "CommitmentDiscountCategory": {None, "Spend", "Usage"},
        "CommitmentDiscountStatus": {None, "Used", "Unused"},
    }
    names = list(rows[0])
    custom = [name.startswith("x_") for name in names]
    if custom != sorted(custom):
        found.add("custom columns stand before columns of FOCUS")
    for row in rows:
        found |= {f"{name} is {row[name]!r}" for name, values in allowed.items() if row[name] not in values}
        found |= {f"{name} is an empty text" for name, value in row.items() if value in ("", "NULL", "N/A")}
        for name in ("Tags", "SkuPriceDetails"):
            if any(isinstance(value, dict | list) for value in (row[name] or {}).values()):
                found.add(f"{name} is not flat")
        if row["ChargePeriodStart"] >= row["ChargePeriodEnd"]:
            found.add("ChargePeriodEnd is not after ChargePeriodStart")
    billed, effective = (sum(row[name] for row in rows) for name in ("BilledCost", "EffectiveCost"))
    if billed != effective:
        found.add(f"BilledCost sums to {billed}, EffectiveCost to {effective}")
    return sorted(found)


def forms(emulator: Emulator, azurite: Azurite, folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every source form with what the view shows of it, each in a project of its own."""
    endpoints = SourceEndpoints(emulator.rest, emulator.grpc)
    for number, form in enumerate([*FORMS, *AZURE_FORMS]):
        with contextlib.closing(Warehouse(build_client(f"judge-{number}", endpoint=emulator.rest))) as warehouse:
            if form in FORMS:
                customer = Customer(build_client(f"judge-{number}-customer", endpoint=emulator.rest))
                runs = TenantRuns(warehouse, TenantId("judged"), customer, endpoints, folder / "staging")
                yield form, asyncio.run(publish(runs, FORMS[form]()))
                customer.client.close()
            else:
                azure_runs = AzureRuns(warehouse, TenantId("judged"), endpoints, folder / "staging")
                yield form, asyncio.run(publish_azure(azure_runs, azurite.container(), AZURE_FORMS[form]))


def main() -> int:
    """Judges every source form; 1 if one was found wanting."""
    program = install()
    wanting = False
    with tempfile.TemporaryDirectory(prefix="judge-") as name:
        folder = Path(name)
        data, blobs = folder / "data", folder / "blobs"
        data.mkdir()
        blobs.mkdir()
        with running_emulator(data) as (emulator, _), running_azurite(blobs) as azurite:
            for number, (form, found) in enumerate(forms(emulator, azurite, folder)):
                path = folder / f"{number}.parquet"
                write(path, found)
                verdict, faults = judge(program, path), own_faults(found)
                checks = len(verdict.passed) + len(verdict.failed)
                known = sorted(name for name, _ in _split(verdict.failed) if name in FAULTY)
                print(
                    f"focus: {form}: {len(found)} rows, {checks} checks, {len(verdict.passed)} passed, "
                    f"{len(verdict.failed)} failed ({len(known)} known faulty, "
                    f"{len(verdict.failed) - len(known) - len(verdict.unexpected)} that sum them up, "
                    f"{len(verdict.unexpected)} others), {verdict.skipped} skipped by the validator; "
                    f"own checks: {len(faults)} faults",
                    flush=True,
                )
                for fault in [*verdict.unexpected, *faults]:
                    print(f"  {fault}", file=sys.stderr)
                wanting = wanting or bool(verdict.unexpected or faults)
    return int(wanting)


if __name__ == "__main__":
    raise SystemExit(main())
