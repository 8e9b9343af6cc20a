"""Billing exports made by hand in a customer's project on the emulator, and a run context over them."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.cloud import bigquery

from libs import tables
from libs.bigquery import Sql, Value, Warehouse
from libs.errors import Aborted
from libs.tenancy import TenantId
from services.pipeline_executor.providers.gcp_export import known_schema
from services.pipeline_executor.run_context import (
    CheckResult,
    Outcome,
    Published,
    RunContext,
    Secret,
    SourceEndpoints,
    StepEvent,
)

DAY = date(2025, 11, 17)
DATASET = "billing"
TABLE = "gcp_billing_export_v1_0A1B2C_3D4E5F_678901"
DETAILED_ONLY = ("resource", "subscription")


@functools.cache
def private_key() -> str:
    """A fresh RSA key, once per process."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def service_account_key(project: str, /, **changes: Any) -> dict[str, Any]:
    """The JSON of a service-account key as it is downloaded."""
    return {
        "type": "service_account",
        "project_id": project,
        "private_key_id": "0123456789abcdef",
        "private_key": private_key(),
        "client_email": f"billing-reader@{project}.iam.gserviceaccount.com",
        "client_id": "123456789012345678901",
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": "https://oauth2.googleapis.com/token",
        "universe_domain": "googleapis.com",
        **changes,
    }


def row(**changes: Any) -> dict[str, Any]:
    """One row of an export as NDJSON holds it; ``None`` leaves a column out."""
    base: dict[str, Any] = {
        "billing_account_id": "0A1B2C-3D4E5F-678901",
        "invoice": {"month": "202511"},
        "cost_type": "regular",
        "service": {"id": "6F81-5844-456A", "description": "Compute Engine"},
        "sku": {"id": "2E27-4F75-95CD", "description": "N1 Predefined Instance Core running in Americas"},
        "usage_start_time": "2025-11-17T08:00:00Z",
        "usage_end_time": "2025-11-17T09:00:00Z",
        "project": {"id": "shop-prod", "number": "1234567890", "name": "Shop", "ancestry_numbers": "/111/222/"},
        "labels": [{"key": "team", "value": "web"}],
        "location": {"location": "us-central1", "country": "US", "region": "us-central1", "zone": "us-central1-a"},
        "export_time": "2025-11-18T03:12:45Z",
        "cost": 0.1,
        "currency": "USD",
        "currency_conversion_rate": 1.0,
        "usage": {"amount": 3600.0, "unit": "seconds", "amount_in_pricing_units": 1.0, "pricing_unit": "hour"},
        "credits": [],
    }
    merged = {**base, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def schema(
    without: Sequence[str] = DETAILED_ONLY,
    types: Mapping[str, str] | None = None,
    extra: Sequence[bigquery.SchemaField] = (),
) -> list[bigquery.SchemaField]:
    """The known schema without some columns, with other types for some (``a.b`` for members), and with extra ones."""
    return [*_fields(known_schema(), "", set(without), dict(types or {})), *extra]


def _fields(
    fields: Sequence[bigquery.SchemaField], prefix: str, without: set[str], types: dict[str, str]
) -> list[bigquery.SchemaField]:
    made = []
    for item in fields:
        path = prefix + item.name
        if path not in without:
            kind = types.get(path, item.field_type)
            members = _fields(item.fields, f"{path}.", without, types)
            made.append(bigquery.SchemaField(item.name, kind, mode=item.mode, fields=members))
    return made


@dataclass
class Customer:
    """A customer's project on the emulator, and ways to fill its export."""

    client: bigquery.Client

    @property
    def project_id(self) -> str:
        return str(self.client.project)

    def export(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        fields: Sequence[bigquery.SchemaField] | None = None,
        partition: str | None = "export_time",
        dataset: str = DATASET,
        table: str = TABLE,
    ) -> bigquery.TableReference:
        """Makes the export anew with these rows. ``partition``: a column, "" for ingestion time, None for none.

        With ingestion time a row lies in the partition of its ``export_time``.
        """
        self.client.create_dataset(dataset, exists_ok=True)
        reference = bigquery.DatasetReference(self.project_id, dataset).table(table)
        self.client.delete_table(reference, not_found_ok=True)
        made = bigquery.Table(reference, schema=list(fields or schema()))
        if partition is not None:
            made.time_partitioning = bigquery.TimePartitioning(field=partition or None)
        self.client.create_table(made)
        self.append(reference, rows)
        return reference

    def append(self, reference: bigquery.TableReference, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows, as the export does; they may have been loaded at any later time."""
        if not rows:
            return
        table = self.client.get_table(reference)
        ingestion = table.time_partitioning is not None and table.time_partitioning.field is None
        target = reference
        if ingestion:
            target = bigquery.DatasetReference(self.project_id, reference.dataset_id).table(f"load_{uuid.uuid4().hex}")
        config = bigquery.LoadJobConfig(schema=table.schema, source_format="NEWLINE_DELIMITED_JSON")
        self.client.load_table_from_json([dict(item) for item in rows], target, job_config=config).result(retry=None)
        if ingestion:
            names = ", ".join(f"`{column.name}`" for column in table.schema)
            self.sql(
                f"INSERT INTO `{self.project_id}.{reference.dataset_id}.{reference.table_id}` (_PARTITIONTIME, {names})"
                f" SELECT TIMESTAMP_TRUNC(export_time, DAY), {names} "
                f"FROM `{self.project_id}.{reference.dataset_id}.{target.table_id}`"
            )
            self.client.delete_table(target)

    def sql(self, text: str) -> list[dict[str, Any]]:
        """Runs anything in the customer's project."""
        return [dict(item.items()) for item in self.client.query(text, retry=None, job_retry=None).result(retry=None)]


@dataclass
class MemoryJournal:
    """A journal that keeps what it is told."""

    events: list[StepEvent] = field(default_factory=list)
    results: list[CheckResult] = field(default_factory=list)

    def step(self, event: StepEvent) -> None:
        self.events.append(event)

    async def quality(self, results: Sequence[CheckResult]) -> None:
        self.results.extend(results)

    def failed(self) -> set[str]:
        """Names of the checks that did not pass."""
        return {result.check_name for result in self.results if result.status != "PASS"}


INSERT_RUN = Sql(
    "test/insert_run.sql",
    """INSERT INTO x_meta_pipeline_runs
      (pipeline_logging_id, attempt, tenant_id, status, provider, domain, template, start_date, end_date, `trigger`,
       start_time)
    SELECT @run, @attempt, @tenant, 'RUNNING', 'gcp', 'cost', 'billing', @first, @last, 'MANUAL', @now""",
)
READ_RUN = Sql(
    "test/read_run.sql",
    """SELECT r.status, r.outcome, r.superseded_by, r.rows_published FROM x_meta_pipeline_runs AS r
    WHERE r.pipeline_logging_id = @run AND r.attempt = @attempt""",
)


@dataclass
class PlainPublisher:
    """Runs the script with no more care than a test needs; ``before`` may change the world just before it."""

    warehouse: Warehouse
    tenant_id: str
    before: Callable[[], Awaitable[None]] | None = None

    async def publish(self, sql: Sql, params: Mapping[str, Value]) -> Published:
        if self.before is not None:
            await self.before()
        await self.warehouse.script(sql, dataset=self.tenant_id, params=params, conflict_retries=5)
        run = {"run": params["pipeline_logging_id"], "attempt": params["attempt"]}
        [found] = await self.warehouse.query(READ_RUN, dataset=self.tenant_id, params=run)
        if found["status"] != "COMPLETED":
            raise Aborted("RUN_FENCED", "not running any more")
        return Published(Outcome(found["outcome"]), found["rows_published"], found["superseded_by"])


@dataclass
class TenantRuns:
    """A tenant's dataset on the emulator, and runs of gcp/cost/billing in it."""

    warehouse: Warehouse
    tenant_id: TenantId
    customer: Customer
    endpoints: SourceEndpoints
    directory: Path

    async def prepare(self) -> None:
        """Makes the tenant's dataset and tables."""
        await self.warehouse.create_dataset(self.tenant_id)
        schemas = [*tables.group("x_meta"), *tables.of_provider("gcp")]
        await self.warehouse.ensure_tables(self.tenant_id, schemas, tables.views("gcp"))

    async def begin(
        self,
        first: date = DAY,
        last: date | None = None,
        *,
        run_id: str | None = None,
        attempt: int = 1,
        **changes: Any,
    ) -> RunContext:
        """Writes the RUNNING row of an attempt and returns its context."""
        run_id = run_id or str(uuid.uuid4())
        params: dict[str, Value] = {
            "run": run_id,
            "attempt": attempt,
            "tenant": str(self.tenant_id),
            "first": first,
            "last": last or first,
            "now": datetime.now(UTC),
        }
        await self.warehouse.execute(INSERT_RUN, dataset=self.tenant_id, params=params)

        async def open_credential() -> Secret:
            return Secret(service_account_key(self.customer.project_id))

        given: dict[str, Any] = {
            "tenant_id": self.tenant_id,
            "user_id": None,
            "pipeline_logging_id": run_id,
            "attempt": attempt,
            "start_date": first,
            "end_date": last or first,
            "warehouse": self.warehouse,
            "publisher": PlainPublisher(self.warehouse, self.tenant_id),
            "journal": MemoryJournal(),
            "staging_dir": self.directory / f"{run_id}-{attempt}",
            "now": lambda: datetime.now(UTC),
            "open_credential": open_credential,
            "source_endpoints": self.endpoints,
            # A test that runs twice wants to see what the second one does.
            "parameters": {"force": True},
        }
        return RunContext(**{**given, **changes})

    async def status(self, context: RunContext) -> dict[str, Any]:
        """The attempt's row."""
        params = {"run": context.pipeline_logging_id, "attempt": context.attempt}
        [found] = await self.warehouse.query(READ_RUN, dataset=self.tenant_id, params=params)
        return found

    async def rows(self, text: str) -> list[dict[str, Any]]:
        """Runs a SELECT in the tenant's dataset."""
        return await self.warehouse.query(Sql("test/select.sql", text), dataset=self.tenant_id)

    async def staging(self) -> list[str]:
        """Staging tables there are now."""
        return [name for name in await self.warehouse.list_tables(self.tenant_id) if name.startswith("x_staging_")]
