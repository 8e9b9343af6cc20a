"""``make judge``: outside judges on what the project's own pipelines publish: ``focus-validator``, and OCSF's schema.

Per source form: the sample goes through the real pipeline on an emulator of its own, view ``focus_v1_2`` is written out
as parquet and judged, and one line beginning ``focus:`` is printed. The exit status is 1 if a check failed that is not
known to be faulty, or that failed only because of one. The validator lives in ``build/judge``, apart from ``.venv``: it
needs Python 3.12. Nothing but the package index is asked on the network. Compliance findings are judged by ``ocsf``, a
line beginning ``ocsf:`` for each form; ``JUDGE`` (``focus``, ``ocsf``) picks one of the two.
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
from tests.judge import ocsf
from tests.support import aws, aws_rows, azure, azure_rows, focus_rows
from tests.support.aws import AwsRuns, Bucket, Moto, running_moto
from tests.support.azure import AzureRuns, Azurite, Storage, running_azurite
from tests.support.billing import Customer, TenantRuns, schema

ROOT = Path(__file__).parents[2]
VENV = ROOT / "build" / "judge"
# The validator pins numpy 1.26, for which newer pyarrow is too new.
PACKAGES = ("focus-validator==2.2.1", "pyarrow<22")
MODEL = "1.2.0.1"
# Checks of the validator's model that contradict the text of FOCUS 1.2, each with the reason. Three fail any data. The
# first one fails only where the company that invoices is named, the second where some rows have an invoice.
FAULTY = {
    "BilledCost-C-005-C": "the text is about third parties, the model takes each of AWS's own companies for one",
    "InvoiceId-C-004-C": "the text asks for null where there is no invoice, the model on every row",
    "InvoiceId-C-005-C": "the text asks for an id once an invoice is issued, the model on every row",
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


def standard(customer: Customer) -> None:
    """The sample as a standard export has it."""
    customer.export([*sample_data.generated(), *sample_data.planted()], fields=schema(without=()))


GCP_FORMS: dict[str, tuple[str, Callable[[Customer], object]]] = {
    "gcp standard export": ("billing", standard),
    "gcp FOCUS export": ("focus", focus_rows.export_google),
}

AWS_FORMS: dict[str, tuple[str, Callable[[Bucket], object]]] = {
    "aws legacy report, csv.gz": (
        "billing",
        lambda bucket: bucket.deliver_legacy({"cur-1.csv.gz": gzip.compress(aws.sample_legacy())}),
    ),
    "aws legacy report with every service, csv.gz": (
        "billing",
        lambda bucket: bucket.deliver_legacy(
            {"cur-1.csv.gz": gzip.compress(aws.sample_made())}, period="20251101-20251201"
        ),
    ),
    "aws CUR 2.0, parquet": ("billing", lambda bucket: bucket.deliver({"a.parquet": aws.as_parquet(aws_rows.ROWS)})),
    "aws FOCUS export, parquet": (
        "focus",
        lambda bucket: bucket.deliver({"a.parquet": aws.as_parquet(focus_rows.AWS)}, export="focus"),
    ),
    "aws FOCUS export, csv.gz": (
        "focus",
        lambda bucket: bucket.deliver({"a.csv.gz": gzip.compress(aws.exported(focus_rows.AWS))}, export="focus"),
    ),
}

AZURE_FORMS: dict[str, tuple[str, Callable[[Storage], object]]] = {
    "azure EA actual export, csv": (
        "billing",
        lambda storage: storage.deliver({"part_0_0001.csv": azure.sample_ea()}, period="20230901-20230930"),
    ),
    "azure actual export, parquet": (
        "billing",
        lambda storage: storage.deliver({"part_0_0001.snappy.parquet": azure_rows.as_parquet(azure.sample_made())}),
    ),
    "azure MCA actual and amortized exports, csv.gz": (
        "billing",
        lambda storage: (
            storage.deliver({"a.csv.gz": gzip.compress(azure.exported(azure_rows.ACTUAL))}),
            storage.deliver(
                {"b.csv.gz": gzip.compress(azure.exported(azure_rows.AMORTIZED))},
                export="amortized",
                kind="AmortizedCost",
            ),
        ),
    ),
    "azure FOCUS export, csv": (
        "focus",
        lambda storage: storage.deliver(
            {"a.csv": azure.exported([focus_rows.as_text(row) for row in focus_rows.AZURE])},
            export="focus",
            kind="FocusCost",
        ),
    ),
    "azure FOCUS export, parquet": (
        "focus",
        lambda storage: storage.deliver(
            {"a.parquet": aws.as_parquet(focus_rows.AZURE)}, export="focus", kind="FocusCost"
        ),
    ),
}
# The months of the samples.
MONTHS = [(date(2023, 9, 1), date(2023, 9, 30)), (date(2023, 11, 1), date(2023, 11, 30)),
          (date(2025, 11, 1), date(2025, 11, 30))]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where forms are delivered and published: stand-ins of all clouds, and one new project for each form."""

    emulator: Emulator
    azurite: Azurite
    moto: Moto
    folder: Path


async def publish(provider: str, form: str, place: Place, warehouse: Warehouse) -> list[dict[str, Any]]:
    """Sends one form through its template and returns the view's rows."""
    endpoints = SourceEndpoints(place.emulator.rest, place.emulator.grpc)
    tenant = TenantId("judged")
    runs: TenantRuns | AwsRuns | AzureRuns
    source: dict[str, Any] = {}
    match provider:
        case "gcp":
            template, deliver = GCP_FORMS[form]
            client = build_client(f"{warehouse.project_id}-customer", endpoint=place.emulator.rest)
            runs = TenantRuns(warehouse, tenant, Customer(client), endpoints, place.folder / "staging")
            deliver(runs.customer)
        case "aws":
            template, put = AWS_FORMS[form]
            runs = AwsRuns(warehouse, tenant, endpoints, place.folder / "staging", template)
            bucket = place.moto.bucket()
            put(bucket)
            source = bucket.source()
        case _:
            template, fill = AZURE_FORMS[form]
            runs = AzureRuns(warehouse, tenant, endpoints, place.folder / "staging", template)
            storage = place.azurite.container()
            fill(storage)
            source = storage.source()
    await runs.prepare()
    for first, last in MONTHS:
        with contextlib.suppress(FailedPrecondition):
            started = runs.begin(first, last) if isinstance(runs, TenantRuns) else runs.begin(source, first, last)
            await Engine().run(Templates.load().get(provider, "cost", template), await started)
    return await warehouse.query(_READ, dataset=tenant, timeout=300)


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


def forms(place: Place) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every source form with what the view shows of it, each in a project of its own."""
    by_provider = {"gcp": GCP_FORMS, "aws": AWS_FORMS, "azure": AZURE_FORMS}
    every = [(name, form) for name, known in by_provider.items() for form in known]
    for number, (provider, form) in enumerate(every):
        with contextlib.closing(Warehouse(build_client(f"judge-{number}", endpoint=place.emulator.rest))) as warehouse:
            yield form, asyncio.run(publish(provider, form, place, warehouse))


def judge_costs(place: Place) -> bool:
    """Judges every form of cost data; whether one was found wanting."""
    program, wanting = install(), False
    for number, (form, found) in enumerate(forms(place)):
        if not found:
            raise SystemExit(f"error: nothing was published of {form}")
        path = place.folder / f"{number}.parquet"
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
    return wanting


def judge_findings(emulator: Emulator, folder: Path) -> bool:
    """Judges every form of compliance findings; whether one was found wanting."""
    wanting = False
    for form, verdict in ocsf.verdicts(emulator, folder):
        print(ocsf.line(form, verdict), flush=True)
        for fault in verdict.faults:
            print(f"  {fault}", file=sys.stderr)
        wanting = wanting or bool(verdict.faults) or not verdict.findings
    return wanting


def main() -> int:
    """Judges every source form; 1 if one was found wanting."""
    asked = os.environ.get("JUDGE", "focus,ocsf").split(",")
    wanting = False
    with tempfile.TemporaryDirectory(prefix="judge-") as name:
        folder = Path(name)
        data, blobs, buckets = folder / "data", folder / "blobs", folder / "buckets"
        for made in (data, blobs, buckets):
            made.mkdir()
        with running_emulator(data) as (emulator, _):
            if "ocsf" in asked:
                wanting = judge_findings(emulator, folder)
            if "focus" in asked:
                with running_azurite(blobs) as azurite, running_moto(buckets) as moto:
                    wanting = judge_costs(Place(emulator, azurite, moto, folder)) or wanting
    return int(wanting)


if __name__ == "__main__":
    raise SystemExit(main())
