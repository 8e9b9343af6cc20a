"""Which rows of an export belong to a run, and how a table of any age is read as one schema."""

from __future__ import annotations

from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

from libs.bigquery import Typed
from libs.errors import FailedPrecondition
from services.pipeline_executor.providers import gcp_export
from services.pipeline_executor.providers.gcp_export import Partitioning, known_schema, plan
from tests.support.billing import schema

DAY = date(2025, 11, 17)
USAGE = (
    "usage_start_time >= TIMESTAMP '2025-11-17 00:00:00+00' AND usage_start_time < TIMESTAMP '2025-11-18 00:00:00+00'"
)


def restriction(layout: Partitioning | None, first: date = DAY, last: date = DAY) -> str:
    return gcp_export.rows(plan(known_schema()), layout, first, last).restriction()


def test_days_are_half_open_in_utc() -> None:
    assert restriction(None) == USAGE
    assert restriction(None, date(2024, 2, 28), date(2024, 2, 29)) == (
        "usage_start_time >= TIMESTAMP '2024-02-28 00:00:00+00'"
        " AND usage_start_time < TIMESTAMP '2024-03-01 00:00:00+00'"
    )


@pytest.mark.parametrize(
    ("column", "kind", "unit", "floor"),
    [
        ("_PARTITIONTIME", "TIMESTAMP", "DAY", "TIMESTAMP '2025-11-16 00:00:00+00'"),
        ("_PARTITIONTIME", "TIMESTAMP", "HOUR", "TIMESTAMP '2025-11-16 00:00:00+00'"),
        ("_PARTITIONTIME", "TIMESTAMP", "MONTH", "TIMESTAMP '2025-11-01 00:00:00+00'"),
        ("_PARTITIONTIME", "TIMESTAMP", "YEAR", "TIMESTAMP '2025-01-01 00:00:00+00'"),
        ("export_time", "TIMESTAMP", "DAY", "TIMESTAMP '2025-11-16 00:00:00+00'"),
        ("usage_start_time", "DATETIME", "DAY", "DATETIME '2025-11-16 00:00:00'"),
        ("partition_date", "DATE", "DAY", "DATE '2025-11-16'"),
        ("invoice_date", "DATE", "MONTH", "DATE '2025-09-30'"),
        ("whatever", "TIMESTAMP", "DAY", "TIMESTAMP '2025-09-30 00:00:00+00'"),
    ],
)
def test_the_partition_bound_is_of_its_columns_type_and_lets_nulls_in(
    column: str, kind: str, unit: str, floor: str
) -> None:
    text = restriction(Partitioning(column, kind, unit))
    assert text == f"{USAGE} AND (`{column}` >= {floor} OR `{column}` IS NULL)"


def test_the_first_of_a_month_looks_a_day_back() -> None:
    text = restriction(Partitioning("_PARTITIONTIME", "TIMESTAMP", "MONTH"), date(2025, 11, 1))
    assert "`_PARTITIONTIME` >= TIMESTAMP '2025-10-01 00:00:00+00'" in text
    text = restriction(Partitioning("_PARTITIONTIME", "TIMESTAMP", "YEAR"), date(2025, 1, 1))
    assert "`_PARTITIONTIME` >= TIMESTAMP '2024-01-01 00:00:00+00'" in text


def test_parameters_say_the_same_as_the_restriction() -> None:
    rows = gcp_export.rows(plan(known_schema()), Partitioning("day", "DATE", "DAY"), DAY, DAY)
    params = rows.params()
    assert [value.type for value in params.values() if isinstance(value, Typed)] == ["TIMESTAMP", "TIMESTAMP", "DATE"]
    assert params["floor"] == Typed("DATE", date(2025, 9, 30))
    assert rows.partition_column().quoted() == "`day`"
    unpartitioned = gcp_export.rows(plan(known_schema()), None, DAY, DAY)
    assert unpartitioned.params()["floor"] == unpartitioned.params()["start"]
    assert unpartitioned.partition_column().quoted() == "`usage_start_time`"
    local = gcp_export.rows(plan(schema(types={"usage_start_time": "DATETIME"})), None, DAY, DAY)
    assert {value.type for value in local.params().values() if isinstance(value, Typed)} == {"DATETIME"}
    assert local.restriction().startswith("usage_start_time >= DATETIME '2025-11-17 00:00:00'")


def test_a_column_that_is_no_identifier_is_refused() -> None:
    with pytest.raises(ValueError, match="not a table"):
        restriction(Partitioning("x` OR 1=1 --", "DATE", "DAY"))


def table(fields: list[SchemaField], **partitioning: Any) -> Any:
    layout = bigquery.TimePartitioning(**partitioning) if partitioning else None
    return SimpleNamespace(schema=fields, time_partitioning=layout)


def test_partitioning_is_read_off_the_table() -> None:
    fields = [SchemaField("export_time", "TIMESTAMP"), SchemaField("day", "DATE")]
    assert gcp_export.partitioning(table(fields)) is None
    assert gcp_export.partitioning(table(fields, type_="DAY")) == Partitioning("_PARTITIONTIME", "TIMESTAMP", "DAY")
    assert gcp_export.partitioning(table(fields, field="day", type_="MONTH")) == Partitioning("day", "DATE", "MONTH")


def test_the_whole_schema_needs_nothing() -> None:
    read = plan(known_schema())
    assert (read.missing, read.extra, read.has_credits) == ((), (), True)
    assert read.schema == (*known_schema(), SchemaField("source_extra", "STRING"))


def test_what_is_missing_and_what_is_new_is_said() -> None:
    fields = schema(
        without=["resource", "price.list_price", "credits.full_name"],
        extra=[SchemaField("carbon", "FLOAT"), SchemaField("seen", "TIMESTAMP", mode="REPEATED")],
    )
    read = plan(fields)
    assert read.missing == ("resource", "price.list_price", "credits.full_name")
    assert read.extra == ("carbon", "seen")
    assert [field.name for field in read.schema] == [*(field.name for field in known_schema()), "source_extra"]


@pytest.mark.parametrize(
    ("path", "found", "staged"),
    [
        ("cost", "NUMERIC", "NUMERIC"),
        ("cost", "BIGNUMERIC", "STRING"),
        ("cost", "INT64", "FLOAT"),
        ("cost", "FLOAT64", "FLOAT"),
        ("cost_at_list", "NUMERIC", "NUMERIC"),
        ("currency", "STRING", "STRING"),
        ("billing_account_id", "INTEGER", "STRING"),
        ("usage_end_time", "DATETIME", "TIMESTAMP"),
    ],
)
def test_types_of_any_age_are_staged(path: str, found: str, staged: str) -> None:
    fields = {field.name: field for field in plan(schema(types={path: found})).schema}
    assert fields[path].field_type == staged


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (schema(without=["cost", "currency"]), "it has no column cost, currency"),
        (schema(types={"cost": "STRING"}), "column cost is STRING, expected FLOAT"),
        (schema(types={"export_time": "DATE"}), "column export_time is DATE, expected TIMESTAMP"),
        ([*schema(without=["credits"]), SchemaField("credits", "JSON")], "column credits is NULLABLE JSON, expected"),
        ([*schema(without=["service"]), SchemaField("service", "STRING")], "column service is NULLABLE STRING"),
    ],
)
def test_another_kind_of_table_is_refused(fields: list[SchemaField], text: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        plan(fields)
    assert caught.value.reason == "SOURCE_NOT_A_BILLING_EXPORT"
    assert text in caught.value.message


def test_names_of_exports() -> None:
    name = gcp_export.EXPORT_NAME
    assert name.fullmatch("gcp_billing_export_v1_0A1B2C_3D4E5F_678901")
    assert name.fullmatch("gcp_billing_export_resource_v1_0A1B2C_3D4E5F_678901")
    assert not name.fullmatch("gcp_billing_export_focus_0A1B2C")
    assert not name.fullmatch("cloud_pricing_export")
