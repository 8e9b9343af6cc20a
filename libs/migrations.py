"""Applies what table schemas cannot say: numbered ``sql/migrations/NNNN_verb_noun.sql`` files, once, in order.

Called by ``deploy/setup_bigquery_datasets.py``. Columns and layouts are not migrations: they are the text in
``libs/tables``. A migration must be additive and safe to run twice (``IF NOT EXISTS``), because two deploys may run it
at once and code of the release before it still runs beside it.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Sequence

from libs.bigquery import Sql, Warehouse, rows_param
from libs.tenancy import CENTRAL_DATASET

_READ = Sql.load("libs", "sql/read_migrations.sql")
_RECORD = Sql.load("libs", "sql/record_migration.sql")
_NAME = re.compile(r"\d{4}_[a-z0-9_]+\.sql")


def find(package: str) -> list[Sql]:
    """The migrations of a package in order; ``ValueError`` for a misnamed file or a number used twice."""
    folder = importlib.resources.files(package).joinpath("sql", "migrations")
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise ValueError(f"{package}: a migration is named NNNN_verb_noun.sql, not {wrong[0]}")
    if len({name[:4] for name in names}) != len(names):
        raise ValueError(f"{package}: two migrations have one number")
    return [Sql.load(package, f"sql/migrations/{name}") for name in names]


async def apply(warehouse: Warehouse, *, packages: Sequence[str], dataset: str = CENTRAL_DATASET) -> list[str]:
    """Runs every migration of ``packages`` that is not recorded yet; returns the names of those it ran."""
    wanted = [migration for package in packages for migration in find(package)]
    if not wanted:
        return []
    recorded = {row["name"] for row in await warehouse.query(_READ, dataset=dataset)}
    applied = []
    for migration in wanted:
        if migration.name in recorded:
            continue
        await warehouse.script(migration, dataset=dataset, conflict_retries=5)
        rows = rows_param([{"name": migration.name}])
        await warehouse.execute(_RECORD, dataset=dataset, params={"rows": rows}, conflict_retries=5)
        applied.append(migration.name)
    return applied
