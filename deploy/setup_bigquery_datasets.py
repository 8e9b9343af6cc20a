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

from libs import central, errors, migrations, tables
from libs.bigquery import Warehouse, connect
from libs.settings import ServiceSettings, SettingsInvalid, load
from libs.tenancy import CENTRAL_DATASET


async def setup(warehouse: Warehouse, report: Callable[[str], None] = print) -> None:
    """Brings the central dataset up to date and reports each step; raises ``libs.errors`` if it cannot."""
    wanted = (*tables.group("central"), *tables.group("helper"))
    report(f"dataset {warehouse.project_id}.{CENTRAL_DATASET}: {await _ensure_dataset(warehouse)}")
    created = await warehouse.ensure_tables(CENTRAL_DATASET, wanted)
    report(f"tables created: {', '.join(created) or 'none, all were there'}")
    services = sorted(item.name for item in importlib.resources.files("services").iterdir() if _is_package(item.name))
    applied = await migrations.apply(warehouse, packages=[f"services.{name}" for name in services])
    report(f"migrations applied: {', '.join(applied) or 'none'}")
    state = await central.look(warehouse)
    report(str(state))
    report(f"helper tables: {', '.join(state.helpers_found)}")
    if missing := (*state.missing, *state.helpers_missing):
        raise errors.FailedPrecondition("STORE_OBJECT_MISSING", f"still missing in {state.place}: {', '.join(missing)}")


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
        sys.exit(f"setup-bigquery: {central.advice(error, settings.gcp_project_id)}{cause}")
    finally:
        warehouse.close()


if __name__ == "__main__":
    main()
