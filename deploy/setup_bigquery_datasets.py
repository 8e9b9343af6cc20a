"""``make setup-bigquery``: creates or completes the central dataset, on a real project or on the emulator.

Run on every deploy, before the services; running it again, or twice at once, changes nothing. It creates dataset
``tenants`` and its tables from ``libs/tables``, adds columns that are new there, applies the services' numbered
migrations and then checks by name what is there. Tenants' own datasets are the tenant service's.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import sys
from collections.abc import Callable

from libs import errors, migrations, tables
from libs.bigquery import Warehouse, connect
from libs.settings import ServiceSettings, SettingsInvalid, load
from libs.tenancy import CENTRAL_DATASET


async def setup(warehouse: Warehouse, report: Callable[[str], None] = print) -> None:
    """Brings the central dataset up to date and reports each step; raises ``libs.errors`` if it cannot."""
    central, helper = tables.group("central"), tables.group("helper")
    place = f"{warehouse.project_id}.{CENTRAL_DATASET}"
    report(f"dataset {place}: {await _ensure_dataset(warehouse)}")
    created = await warehouse.ensure_tables(CENTRAL_DATASET, [*central, *helper])
    report(f"tables created: {', '.join(created) or 'none, all were there'}")
    services = sorted(item.name for item in importlib.resources.files("services").iterdir() if _is_package(item.name))
    applied = await migrations.apply(warehouse, packages=[f"services.{name}" for name in services])
    report(f"migrations applied: {', '.join(applied) or 'none'}")
    present = set(await warehouse.list_tables(CENTRAL_DATASET))
    wanted = [schema.name for schema in central]
    found = [name for name in wanted if name in present]
    report(f"{len(found)} of {len(wanted)} tables: {', '.join(found)}")
    report(f"helper tables: {', '.join(schema.name for schema in helper if schema.name in present)}")
    if missing := [schema.name for schema in (*central, *helper) if schema.name not in present]:
        raise errors.FailedPrecondition("STORE_OBJECT_MISSING", f"still missing in {place}: {', '.join(missing)}")


async def _ensure_dataset(warehouse: Warehouse) -> str:
    if await warehouse.get_dataset(CENTRAL_DATASET) is not None:
        return "exists"
    try:
        await warehouse.create_dataset(CENTRAL_DATASET, labels={"owner": "convergence"})
    except errors.AlreadyExists:
        return "exists"
    return "created"


def _is_package(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_")


def _advice(error: errors.Error, project_id: str) -> str:
    if error.reason == "STORE_ACCESS_DENIED":
        grant = f"gcloud projects add-iam-policy-binding {project_id} --member=serviceAccount:SERVICE_ACCOUNT --role="
        return (
            "BigQuery answered 403. The account that runs this needs bigquery.datasets.create, bigquery.tables.create "
            f"and bigquery.jobs.create:\n  {grant}roles/bigquery.dataEditor\n  {grant}roles/bigquery.jobUser"
        )
    if error.reason == "STORE_OBJECT_MISSING" and error.__cause__ is not None:
        return (
            f"BigQuery answered 404 in project {project_id}. Is GCP_PROJECT_ID right, and the API on?\n"
            f"  gcloud services enable bigquery.googleapis.com --project={project_id}"
        )
    if isinstance(error, errors.Unavailable):
        return f"{error.message} Is CONVERGENCE_BIGQUERY_ENDPOINT right? For the local stack, `make up` starts it."
    return error.message


def main() -> None:
    """Reads the environment (GCP_PROJECT_ID, …), sets up, and exits 1 with what to do if it cannot."""
    try:
        settings = load(ServiceSettings)
    except SettingsInvalid as exc:
        sys.exit(str(exc))
    warehouse = connect(settings)
    try:
        asyncio.run(setup(warehouse))
    except errors.Error as error:
        cause = f"\n({error.__cause__})" if error.__cause__ else ""
        sys.exit(f"setup-bigquery: {_advice(error, settings.gcp_project_id)}{cause}")
    finally:
        warehouse.close()


if __name__ == "__main__":
    main()
