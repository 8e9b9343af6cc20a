"""Views beside the tables of a group: their tables are named in full, and only a changed text is written again."""

from __future__ import annotations

from typing import Any

import pytest
from google.api_core.exceptions import Conflict
from google.cloud import bigquery

from libs import tables
from libs.bigquery import Warehouse

VIEW = tables.View("v", "SELECT t.a FROM {focus_cost_and_usage} AS t")
TEXT = "SELECT t.a FROM `proj.acme.focus_cost_and_usage` AS t"


class Catalog:
    """As much of the client as making a view needs."""

    project = "proj"

    def __init__(self, present: str | None) -> None:
        self.present = present
        self.calls: list[str] = []

    def list_tables(self, *args: Any, **kwargs: Any) -> list[Any]:
        return []

    def create_table(self, table: bigquery.Table, **kwargs: Any) -> None:
        self.calls.append("create")
        if self.present is not None:
            raise Conflict("there")  # type: ignore[no-untyped-call]
        self.present = table.view_query

    def get_table(self, reference: bigquery.TableReference, **kwargs: Any) -> bigquery.Table:
        self.calls.append("get")
        table = bigquery.Table(reference)
        table.view_query = self.present or ""
        return table

    def update_table(self, table: bigquery.Table, fields: list[str], **kwargs: Any) -> None:
        assert fields == ["view_query"]
        self.calls.append("update")
        self.present = table.view_query

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("present", "calls"),
    [(None, ["create"]), (TEXT, ["create", "get"]), ("SELECT 1", ["create", "get", "update"])],
)
async def test_a_view_is_made_once_and_written_again_only_if_its_text_changed(
    present: str | None, calls: list[str]
) -> None:
    catalog = Catalog(present)
    warehouse = Warehouse(catalog)  # type: ignore[arg-type]
    await warehouse.ensure_tables("acme", (), (VIEW,))
    assert (catalog.present, catalog.calls) == (TEXT, calls)
    warehouse.close()


def test_the_shared_tables_come_with_a_provider_that_has_its_own() -> None:
    assert [schema.name for schema in tables.of_provider("gcp")] == [
        "gcp_cost_billing", "gcp_cost_focus", "focus_cost_and_usage", "x_quarantine", "compliance_history",
        "compliance_scans",
    ]  # fmt: skip
    assert tables.of_provider("nobody") == ()
    shared = ["focus_v1_2", "focus_v1_4", "compliance_findings", "compliance_pass_rates"]
    assert [view.name for view in tables.views("gcp")] == [*shared, "gcp_compliance_findings"]
