"""libs.migrations on the emulator: in order, once, and harmless when two deploys run it together."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from libs import migrations
from libs.bigquery import Sql, Warehouse

CREATE = "CREATE OR REPLACE VIEW plans AS SELECT s.plan AS plan FROM tenant_subscriptions AS s;\n"
USE = "CREATE TABLE IF NOT EXISTS plan_names AS SELECT p.plan AS plan FROM plans AS p;\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "migrating" / "sql" / "migrations"
    folder.mkdir(parents=True)
    (tmp_path / "migrating" / "__init__.py").touch()
    (folder / "0001_create_plans.sql").write_text(CREATE)
    (folder / "0002_create_plan_names.sql").write_text(USE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "migrating", raising=False)
    return folder


async def test_each_is_applied_once_in_order(central: Warehouse, package: Path) -> None:
    names = [f"migrating/sql/migrations/{name}" for name in ("0001_create_plans.sql", "0002_create_plan_names.sql")]
    together = await asyncio.gather(*(migrations.apply(central, packages=["migrating"]) for _ in range(2)))
    assert names in together
    assert await migrations.apply(central, packages=["migrating"]) == []
    recorded = Sql("test/names.sql", "SELECT DISTINCT m.name AS name FROM schema_migrations AS m ORDER BY name")
    assert [row["name"] for row in await central.query(recorded, dataset="tenants")] == names
    (package / "0003_nothing.sql").write_text("SELECT 1 AS one;\n")
    assert await migrations.apply(central, packages=["migrating"]) == ["migrating/sql/migrations/0003_nothing.sql"]


def test_names_and_numbers_are_checked(package: Path) -> None:
    assert len(migrations.find("migrating")) == 2
    (package / "0002_again.sql").write_text("SELECT 1 AS one;\n")
    with pytest.raises(ValueError, match="one number"):
        migrations.find("migrating")
    (package / "0002_again.sql").rename(package / "later.sql")
    with pytest.raises(ValueError, match="NNNN_verb_noun"):
        migrations.find("migrating")
