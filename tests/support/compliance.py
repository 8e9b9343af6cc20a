"""A tenant's runs of compliance templates on the emulator, findings made for them, and the judge of OCSF events."""

from __future__ import annotations

import functools
import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from google.cloud.bigquery import SchemaField
from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from libs import tables
from libs.bigquery import Sql, Value, Warehouse
from libs.tenancy import TenantId
from services.pipeline_executor.engine import Engine, RunResult
from services.pipeline_executor.providers.extraction import Extraction, Scope
from services.pipeline_executor.providers.parquet import ParquetFile
from services.pipeline_executor.providers.prowler import SCHEMA
from services.pipeline_executor.run_context import RunContext, Secret, SourceEndpoints
from services.pipeline_executor.steps import STEPS
from services.pipeline_executor.steps.extract import ExtractConfig
from services.pipeline_executor.steps.step import StepContext, StepResult
from services.pipeline_executor.templates import Templates
from tests.support.billing import MemoryJournal, PlainPublisher

DAY = date(2025, 11, 17)
_TEMPLATES = Templates.load()
_INSERT_RUN = Sql(
    "test/insert_compliance_run.sql",
    """INSERT INTO x_meta_pipeline_runs
      (pipeline_logging_id, attempt, tenant_id, status, provider, domain, template, start_date, end_date, `trigger`,
       start_time)
    SELECT @run, 1, @tenant, 'RUNNING', @provider, 'compliance', @template, @day, @day, 'MANUAL', @now""",
)


@functools.cache
def judge() -> Draft202012Validator:
    """The JSON schema of OCSF 1.8.0, class Compliance Finding, profiles cloud and datetime."""
    ocsf = OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.8.0"))
    return Draft202012Validator(ocsf.get_class_schema(class_name="compliance_finding", profiles=["cloud", "datetime"]))


def faults(event: Mapping[str, Any]) -> list[str]:
    """What the schema says against an event."""
    return [f"{error.json_path}: {error.message}" for error in judge().iter_errors(event)]


def finding(
    check: str,
    resource: str = "arn:aws:s3:::logs",
    status: str = "FAIL",
    *,
    account: str = "111122223333",
    region: str = "eu-west-1",
    severity: str = "High",
    muted: bool = False,
    frameworks: Mapping[str, Sequence[str]] | None = None,
    detail: str = "As it was found.",
    **changes: Any,
) -> dict[str, Any]:
    """A finding as Prowler writes it in its OCSF form."""
    return {
        "message": detail,
        "metadata": {"event_code": check, "product": {"name": "Prowler", "version": "5.4.0"}, "version": "1.4.0"},
        "severity": severity,
        "status": "Suppressed" if muted else "New",
        "status_id": 3 if muted else 1,
        "status_code": status,
        "status_detail": detail,
        "unmapped": {"compliance": frameworks if frameworks is not None else {"CIS-1.4": ["1.20"]}},
        "finding_info": {"title": f"Ensure {check}", "desc": "Why.", "uid": f"prowler-aws-{check}-{resource}"},
        "resources": [{"region": region, "name": resource.rpartition(":")[2], "type": "Other", "uid": resource}],
        "cloud": {"account": {"uid": account, "name": "main"}, "provider": "aws", "region": region},
        "remediation": {"desc": "Mend it.", "references": ["https://example.com/mend"]},
        "class_uid": 2004,
        "time": 1763380800,
        **changes,
    }


@dataclass
class Planted:
    """A scan that is not read from anywhere: rows as its extractor leaves them, their statuses, and what it covers."""

    rows: Sequence[Mapping[str, Any]]
    statuses: Sequence[str]
    scopes: Sequence[Scope]
    schema: tuple[SchemaField, ...] = SCHEMA
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def step(self) -> type[Any]:
        """The step that stands in for ``extract``."""
        planted = self

        class Plant:
            Config = ExtractConfig
            output: ClassVar[type | None] = Extraction

            def __init__(self, config: ExtractConfig) -> None:
                pass

            async def run(self, context: StepContext) -> StepResult:
                return planted.leave(context.run.staging_dir / "planted.parquet")

        return Plant

    def leave(self, path: Path) -> StepResult:
        """Writes the rows as the extractor would."""
        with ParquetFile(path, self.schema) as target:
            target.write(pa.RecordBatch.from_pylist(list(self.rows), schema=target.schema))
        extraction = Extraction(
            files=(path,),
            schema=self.schema,
            rows=len(self.rows),
            bytes=1,
            started=self.started,
            totals={status: {"row_count": Decimal(count)} for status, count in Counter(self.statuses).items()},
            scopes=tuple(self.scopes),
        )
        return StepResult(rows=extraction.rows, output=extraction, no_data=not self.rows)


def prowler_scan(
    records: Sequence[Mapping[str, Any]], scopes: Sequence[Scope] | None = None, **changes: Any
) -> Planted:
    """A scan of Prowler's, OCSF form; it covers wholly the accounts it has, if nothing else is said."""
    accounts = [record["cloud"]["account"]["uid"] for record in records]
    return Planted(
        [
            {"account_uid": account, "record": json.dumps(record)}
            for account, record in zip(accounts, records, strict=True)
        ],
        [record["status_code"] for record in records],
        [Scope(account) for account in sorted(set(accounts))] if scopes is None else scopes,
        **changes,
    )


@dataclass
class ComplianceRuns:
    """A tenant's dataset on the emulator, and runs of compliance templates in it."""

    warehouse: Warehouse
    tenant_id: TenantId
    endpoints: SourceEndpoints
    directory: Path

    async def prepare(self, *providers: str) -> None:
        """Makes the tenant's dataset and tables."""
        await self.warehouse.create_dataset(self.tenant_id)
        for provider in providers:
            schemas = [*tables.group("x_meta"), *tables.of_provider(provider)]
            await self.warehouse.ensure_tables(self.tenant_id, schemas, tables.views(provider))

    async def begin(self, pipeline: str, day: date, **changes: Any) -> RunContext:
        """Writes the RUNNING row of a run and returns its context; ``secret`` is the opened credential."""
        run_id = str(uuid.uuid4())
        provider, _, template = pipeline.split("/")
        params: dict[str, Value] = {
            "run": run_id,
            "tenant": str(self.tenant_id),
            "provider": provider,
            "template": template,
            "day": day,
            "now": datetime.now(UTC),
        }
        await self.warehouse.execute(_INSERT_RUN, dataset=self.tenant_id, params=params)
        secret = changes.pop("secret", {})

        async def open_credential() -> Secret:
            return Secret(secret)

        given: dict[str, Any] = {
            "tenant_id": self.tenant_id,
            "user_id": None,
            "pipeline_logging_id": run_id,
            "attempt": 1,
            "start_date": day,
            "end_date": day,
            "warehouse": self.warehouse,
            "publisher": PlainPublisher(self.warehouse, self.tenant_id),
            "journal": MemoryJournal(),
            "staging_dir": self.directory / run_id,
            "now": lambda: datetime.now(UTC),
            "open_credential": open_credential,
            "source_endpoints": self.endpoints,
        }
        parameters = _TEMPLATES.get(*pipeline.split("/")).check_parameters(changes.pop("parameters", {}))
        return RunContext(**{**given, "parameters": parameters, **changes})

    async def run(self, pipeline: str, day: date, planted: Planted | None = None, **changes: Any) -> RunResult:
        """Runs the template, or all of it but the extraction."""
        return await self.walk(pipeline, await self.begin(pipeline, day, **changes), planted)

    async def walk(self, pipeline: str, context: RunContext, planted: Planted | None = None) -> RunResult:
        """The steps of a run that was begun."""
        steps = {**STEPS, "extract": planted.step()} if planted else STEPS
        return await Engine(steps=steps).run(_TEMPLATES.get(*pipeline.split("/")), context)

    async def rows(self, text: str) -> list[dict[str, Any]]:
        """Runs a SELECT in the tenant's dataset."""
        return await self.warehouse.query(Sql("test/select.sql", text), dataset=self.tenant_id)

    async def events(self) -> list[dict[str, Any]]:
        """The current findings as OCSF events, as JSON."""
        rows = await self.rows("SELECT TO_JSON_STRING(f.ocsf) AS ocsf FROM compliance_findings AS f")
        return [json.loads(row["ocsf"]) for row in rows]


def days(count: int, first: date = DAY) -> list[date]:
    """So many days, one after another."""
    return [first + timedelta(days=number) for number in range(count)]
