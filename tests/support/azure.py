"""Azurite as the Blob service, cost exports delivered into it as Cost Management does, and a tenant's runs of them."""

from __future__ import annotations

import base64
import contextlib
import csv
import fcntl
import gzip
import hashlib
import hmac
import io
import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import AzureStore

from deploy.local import sample_data
from libs import tables
from libs.bigquery import Sql, Value, Warehouse
from libs.tenancy import TenantId
from services.pipeline_executor.run_context import RunContext, Secret, SourceEndpoints
from tests.support.billing import MemoryJournal, PlainPublisher
from tests.support.ports import free_port
from tests.support.stack import until

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data" / "azure"
VERSION = "3.35.0"
ACCOUNT = "devstoreaccount1"
# Published by Microsoft: the one key that every Azurite has.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
SAS_VERSION = "2022-11-02"


def sas(permissions: str = "rl", *, valid_for: timedelta = timedelta(hours=1), key: str = KEY) -> str:
    """A shared access signature of the whole account."""
    fields = {"sp": permissions, "ss": "b", "srt": "sco", "se": f"{datetime.now(UTC) + valid_for:%Y-%m-%dT%H:%M:%SZ}"}
    signed = [ACCOUNT, fields["sp"], fields["ss"], fields["srt"], "", fields["se"], "", "", SAS_VERSION, "", ""]
    signature = hmac.new(base64.b64decode(key), "\n".join(signed).encode(), hashlib.sha256).digest()
    return urllib.parse.urlencode({"sv": SAS_VERSION, **fields, "sig": base64.b64encode(signature).decode()})


def _installed() -> str:
    """Azurite's program, fetched once into ``build/azurite`` by whichever test process comes first."""
    folder = ROOT / "build" / "azurite"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        package = folder / "node_modules" / "azurite" / "package.json"
        if not package.exists() or json.loads(package.read_text())["version"] != VERSION:
            npm = shutil.which("npm")
            if npm is None:
                pytest.skip("node and npm are not on this machine: Azurite needs them")
            command = [npm, "install", "--no-save", "--no-audit", "--no-fund", "--prefix", str(folder)]
            subprocess.run([*command, f"azurite@{VERSION}"], check=True, stdout=subprocess.DEVNULL)
    return str(folder / "node_modules" / ".bin" / "azurite-blob")


@contextlib.contextmanager
def running_azurite(folder: Path) -> Iterator[Azurite]:
    """An Azurite of this process's own on a free port; stopped at the end."""
    port = free_port()
    command = [_installed(), "--silent", "--skipApiVersionCheck", "--disableTelemetry", "--blobHost", "127.0.0.1"]
    command += ["--blobPort", str(port), "--location", str(folder)]
    with (folder / "azurite.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        azurite = Azurite(f"http://127.0.0.1:{port}/{ACCOUNT}")
        until(azurite.answers, bool, timeout=30, what="Azurite answers")
        assert process.poll() is None, (folder / "azurite.log").read_text()
        yield azurite
    finally:
        process.terminate()
        process.wait(10)


@dataclass(frozen=True)
class Azurite:
    """The Blob service at ``endpoint``."""

    endpoint: str

    def answers(self) -> bool:
        """Whether it serves already."""
        try:
            urllib.request.urlopen(f"{self.endpoint}?comp=list&{sas()}", timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def container(self) -> Storage:
        """A new container."""
        name = f"c{uuid.uuid4().hex[:12]}"
        url = f"{self.endpoint}/{name}?restype=container&{sas('rwdlac')}"
        urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=10).close()
        return Storage(self.endpoint, name)


def exported(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as a CSV file with all their columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig")


@dataclass(frozen=True)
class Storage:
    """One container, and deliveries put into it."""

    endpoint: str
    name: str

    @property
    def store(self) -> AzureStore:
        """Full access."""
        config: Any = {"account_name": ACCOUNT, "container_name": self.name, "endpoint": self.endpoint}
        return AzureStore(config={**config, "sas_key": sas("rwdlac")}, client_options={"allow_http": True})

    def source(self, **changes: str) -> dict[str, Any]:
        """The source of a credential for it."""
        return {"storage_account": ACCOUNT, "container": self.name, "endpoint_url": self.endpoint, **changes}

    def put(self, path: str, content: bytes) -> None:
        """Writes a blob."""
        obstore.put(self.store, path, content)

    def deliver(
        self,
        parts: Mapping[str, bytes],
        *,
        export: str = "actual",
        kind: str | None = "ActualCost",
        period: str = "20251101-20251130",
        run: str = "r1",
        submitted: str = "2025-11-20T04:00:00.1234567Z",
        rows: Sequence[int] | None = None,
        leave_out: Sequence[str] = (),
    ) -> str:
        """Puts one run of an export there as Cost Management does, its manifest last; ``kind`` None: without one.

        Files named in ``leave_out`` are in the manifest only. The run's folder is returned.
        """
        folder = f"exports/{export}/{period}/{run}"
        for name, content in parts.items():
            if name not in leave_out:
                self.put(f"{folder}/{name}", content)
        if kind is not None:
            blobs = [{"blobName": f"{folder}/{name}", "byteCount": len(content)} for name, content in parts.items()]
            for blob, count in zip(blobs, rows or (), strict=False):
                blob["dataRowCount"] = count
            manifest = {
                "manifestVersion": "2024-04-01",
                "blobCount": len(blobs),
                "exportConfig": {"exportName": export, "type": kind, "dataVersion": "2021-10-01"},
                "runInfo": {"runId": run, "submittedTime": submitted},
                "blobs": blobs,
            }
            self.put(f"{folder}/manifest.json", json.dumps(manifest).encode())
        return folder


def sample_ea() -> bytes:
    """The anonymised EA export of 2023-09-02."""
    return (DATA / "ea_actual_2023-09-02.csv").read_bytes()


def sample_made() -> bytes:
    """The generated export of November 2025."""
    return gzip.decompress(sample_data.AZURE_FILE.read_bytes())


_INSERT_RUN = Sql(
    "test/insert_azure_run.sql",
    """INSERT INTO x_meta_pipeline_runs
      (pipeline_logging_id, attempt, tenant_id, status, provider, domain, template, start_date, end_date, `trigger`,
       start_time)
    SELECT @run, 1, @tenant, 'RUNNING', 'azure', 'cost', @template, @first, @last, 'MANUAL', @now""",
)


@dataclass
class AzureRuns:
    """A tenant's dataset on the emulator, and runs of Azure's pipelines in it."""

    warehouse: Warehouse
    tenant_id: TenantId
    endpoints: SourceEndpoints
    directory: Path
    template: str = "billing"

    async def prepare(self) -> None:
        """Makes the tenant's dataset and tables."""
        await self.warehouse.create_dataset(self.tenant_id)
        schemas = [*tables.group("x_meta"), *tables.of_provider("azure")]
        await self.warehouse.ensure_tables(self.tenant_id, schemas, tables.views("azure"))

    async def begin(
        self,
        source: Mapping[str, Any],
        first: date,
        last: date,
        *,
        secret: Callable[[], Mapping[str, Any]] = lambda: {"sas_token": sas()},
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
