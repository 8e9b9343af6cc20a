"""moto as S3 and STS, cost exports delivered into it as AWS does, and a tenant's runs of them."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq

from deploy.local import sample_data
from libs import tables
from libs.bigquery import Sql, Value, Warehouse
from libs.tenancy import TenantId
from services.pipeline_executor.run_context import RunContext, Secret, SourceEndpoints
from tests.support.billing import MemoryJournal, PlainPublisher
from tests.support.ports import free_port
from tests.support.stack import until

DATA = Path(__file__).parent / "data" / "aws"
KEY = {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
ROLE = {"role_arn": "arn:aws:iam::123456789012:role/convergence", "external_id": "cvg-0001"}


@contextlib.contextmanager
def running_moto(folder: Path) -> Iterator[Moto]:
    """A moto server of this process's own on a free port; stopped at the end."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "moto.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    moto = Moto(f"http://127.0.0.1:{port}")
    try:
        until(lambda: _listens(port), bool, timeout=60, what="moto answers")
        assert process.poll() is None, (folder / "moto.log").read_text()
        yield moto
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Moto:
    """The stand-in at ``endpoint``."""

    endpoint: str

    def client(self, service: str) -> Any:
        """A client of it, with a key that may do anything."""
        return boto3.client(
            service, "us-east-1", endpoint_url=self.endpoint, aws_access_key_id="test", aws_secret_access_key="test"
        )

    def bucket(self) -> Bucket:
        """A new bucket."""
        made = Bucket(self.endpoint, f"b{uuid.uuid4().hex[:12]}", self.client("s3"))
        made.client.create_bucket(Bucket=made.name)
        return made


@dataclass
class Bucket:
    """One bucket, and deliveries put into it."""

    endpoint: str
    name: str
    client: Any = field(repr=False)

    def source(self, **changes: str) -> dict[str, Any]:
        """The source of a credential for it."""
        return {"bucket": self.name, "prefix": "costs", "endpoint_url": self.endpoint, **changes}

    def put(self, path: str, content: bytes) -> None:
        """Writes an object."""
        self.client.put_object(Bucket=self.name, Key=path, Body=content)

    def deliver(
        self,
        parts: Mapping[str, bytes],
        *,
        export: str = "cur2",
        month: str = "2025-11",
        execution: str | None = None,
        columns: Sequence[str] = (),
        leave_out: Sequence[str] = (),
    ) -> str:
        """Puts one run of a data export there as AWS does, its manifest last; its manifest's key is returned.

        With ``execution`` it is kept beside older ones, else it overwrites them. Files named in ``leave_out`` are in
        the manifest only.
        """
        inner = f"BILLING_PERIOD={month}" + (f"/{execution}" if execution else "")
        keys = {name: f"costs/{export}/data/{inner}/{name}" for name in parts}
        for name, content in parts.items():
            if name not in leave_out:
                self.put(keys[name], content)
        manifest = {
            "executionId": execution or "overwritten",
            "dataFiles": [f"s3://{self.name}/{key}" for key in keys.values()],
            "columns": [{"name": name} for name in columns],
        }
        path = f"costs/{export}/metadata/{inner}/{export}-Manifest.json"
        self.put(path, json.dumps(manifest).encode())
        return path

    def deliver_legacy(
        self, parts: Mapping[str, bytes], *, report: str = "cur", period: str = "20231101-20231201"
    ) -> None:
        """Puts one assembly of a legacy report there, its manifest last, in both places."""
        folder = f"costs/{report}/{period}"
        for name, content in parts.items():
            self.put(f"{folder}/a1/{name}", content)
        manifest = {"assemblyId": "a1", "bucket": self.name, "reportKeys": [f"{folder}/a1/{name}" for name in parts]}
        for path in (f"{folder}/a1/{report}-Manifest.json", f"{folder}/{report}-Manifest.json"):
            self.put(path, json.dumps(manifest).encode())


def sample_legacy() -> bytes:
    """The anonymised legacy report of November 2023."""
    return gzip.decompress((DATA / "legacy_2023-11.csv.gz").read_bytes())


def sample_made() -> bytes:
    """The generated legacy report of November 2025."""
    return gzip.decompress(sample_data.AWS_FILE.read_bytes())


def exported(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as a CSV file with all their columns; maps as JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(
        {name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()} for row in rows
    )
    return text.getvalue().encode()


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as AWS writes parquet: money and amounts are doubles, times timestamps, tags maps."""
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if any(isinstance(value, dict) for value in values):
            items = [None if value is None else list(value.items()) for value in values]
            columns[name] = pa.array(items, pa.map_(pa.string(), pa.string()))
        elif any(isinstance(value, datetime) for value in values):
            columns[name] = pa.array(values, pa.timestamp("ms"))
        elif any(isinstance(value, float | int) for value in values):
            columns[name] = pa.array([None if value in (None, "") else float(value) for value in values], pa.float64())
        else:
            columns[name] = pa.array([value or None for value in values], pa.string())
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression="snappy")
    return out.getvalue()


_INSERT_RUN = Sql(
    "test/insert_aws_run.sql",
    """INSERT INTO x_meta_pipeline_runs
      (pipeline_logging_id, attempt, tenant_id, status, provider, domain, template, start_date, end_date, `trigger`,
       start_time)
    SELECT @run, 1, @tenant, 'RUNNING', 'aws', 'cost', @template, @first, @last, 'MANUAL', @now""",
)


@dataclass
class AwsRuns:
    """A tenant's dataset on the emulator, and runs of AWS's pipelines in it."""

    warehouse: Warehouse
    tenant_id: TenantId
    endpoints: SourceEndpoints
    directory: Path
    template: str = "billing"

    async def prepare(self) -> None:
        """Makes the tenant's dataset and tables."""
        await self.warehouse.create_dataset(self.tenant_id)
        schemas = [*tables.group("x_meta"), *tables.of_provider("aws")]
        await self.warehouse.ensure_tables(self.tenant_id, schemas, tables.views("aws"))

    async def begin(
        self,
        source: Mapping[str, Any],
        first: date,
        last: date,
        *,
        secret: Callable[[], Mapping[str, Any]] = lambda: KEY,
        **changes: Any,
    ) -> RunContext:
        """Writes the RUNNING row of a run and returns its context."""
        run_id = str(uuid.uuid4())
        params: dict[str, Value] = {
            "run": run_id,
            "tenant": str(self.tenant_id),
            "template": self.template,
            "first": first,
            "last": last,
            "now": datetime.now(UTC),
        }
        await self.warehouse.execute(_INSERT_RUN, dataset=self.tenant_id, params=params)

        async def open_credential() -> Secret:
            return Secret(secret())

        given: dict[str, Any] = {
            "tenant_id": self.tenant_id,
            "user_id": None,
            "pipeline_logging_id": run_id,
            "attempt": 1,
            "start_date": first,
            "end_date": last,
            "warehouse": self.warehouse,
            "publisher": PlainPublisher(self.warehouse, self.tenant_id),
            "journal": MemoryJournal(),
            "staging_dir": self.directory / run_id,
            "now": lambda: datetime.now(UTC),
            "open_credential": open_credential,
            "source": source,
            "source_endpoints": self.endpoints,
            # A test that runs twice wants to see what the second one does.
            "parameters": {"force": True},
        }
        return RunContext(**{**given, **changes})

    async def rows(self, text: str) -> list[dict[str, Any]]:
        """Runs a SELECT in the tenant's dataset."""
        return await self.warehouse.query(Sql("test/select.sql", text), dataset=self.tenant_id)
