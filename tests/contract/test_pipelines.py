"""Every pipeline template against the rules that its text alone must keep; a new one is found by itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from libs import tables
from libs.bigquery import Sql
from services.pipeline_executor.steps.publish import PublishConfig
from services.pipeline_executor.steps.quality import QualityConfig
from services.pipeline_executor.steps.transform import TransformConfig
from services.pipeline_executor.templates import Pipeline, Templates

SCHEMAS = {
    schema.name: schema
    for folder in (Path(__file__).parents[2] / "libs/tables").iterdir()
    if folder.is_dir()
    for schema in tables.group(folder.name)
}
PIPELINES = Templates.load().list()
every_pipeline = pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.id)
every_cost_pipeline = pytest.mark.parametrize(
    "pipeline", [pipeline for pipeline in PIPELINES if pipeline.domain == "cost"], ids=lambda pipeline: pipeline.id
)
every_compliance_pipeline = pytest.mark.parametrize(
    "pipeline",
    [pipeline for pipeline in PIPELINES if pipeline.domain == "compliance"],
    ids=lambda pipeline: pipeline.id,
)
OBSERVATION = json.loads(
    (Path(__file__).parents[2] / "services/pipeline_executor/reference/compliance_observation.schema.json").read_text()
)


def configs[T](pipeline: Pipeline, kind: type[T]) -> list[T]:
    return [step.config for step in pipeline.steps if isinstance(step.config, kind)]


def body(sql: Sql) -> str:
    return re.sub(r"--[^\n]*", "", sql.text)


def script(config: PublishConfig) -> str:
    """The publishing script with the names of the tables it fills."""
    text = body(config.sql)
    for name, given in {**config.targets, **{name: column.table for name, column in config.columns.items()}}.items():
        text = text.replace(f"{{{name}}}", given)
    return text


def names(text: str, alias: str = "") -> list[str]:
    return [name.strip().removeprefix(alias) for name in text.split(",")]


@every_cost_pipeline
def test_publishing_names_every_column_of_its_own_tables_once_and_in_one_order(pipeline: Pipeline) -> None:
    [config] = configs(pipeline, PublishConfig)
    found = re.findall(
        r"INSERT INTO (\w+) \(([^)]*)\)\s*SELECT\s+(.*?)\s+FROM \{\w+\} AS (\w+)\b", script(config), re.DOTALL
    )
    assert [table for table, _, _, _ in found] == list(pipeline.tables)
    for table, into, select, alias in found:
        columns = [field.name for field in SCHEMAS[table].fields]
        shared = SCHEMAS[table] not in tables.group(pipeline.provider)
        assert names(into) == [name for name in columns if name in names(into) or not shared]
        if table != "x_quarantine":
            assert names(select, f"{alias}.") == names(into)


@every_cost_pipeline
def test_what_is_quarantined_is_published_nowhere_else(pipeline: Pipeline) -> None:
    """Each statement that takes staged rows over says which, and publishing itself those that are kept apart."""
    first, focus = configs(pipeline, TransformConfig)
    [quality], [publish] = configs(pipeline, QualityConfig), configs(pipeline, PublishConfig)
    assert "AS quarantine_reason" in first.sql.text
    placeholder = next(iter(focus.tables))
    for read in re.findall(rf"FROM \{{{placeholder}\}} AS (\w+)(.*?)(?:GROUP|\n\))", body(focus.sql), re.DOTALL):
        assert f"{read[0]}.quarantine_reason IS NULL" in read[1]
    own = re.search(rf"INSERT INTO {pipeline.tables[0]}\b[^;]*;", script(publish))
    kept = re.search(r"INSERT INTO x_quarantine\b[^;]*;", script(publish))
    assert own is not None and own[0].endswith("WHERE newer IS NULL AND s.quarantine_reason IS NULL;")
    assert kept is not None and kept[0].endswith("WHERE s.quarantine_reason IS NOT NULL;")
    assert quality.quarantine is not None
    assert quality.quarantine.columns.items() <= publish.columns.items()
    assert quality.quarantine.sql.placeholders == {"rows", *quality.quarantine.columns}


@every_pipeline
def test_publishing_fences_before_it_touches_data_and_deletes_only_its_dates(pipeline: Pipeline) -> None:
    [config] = configs(pipeline, PublishConfig)
    text = script(config)
    order = [
        text.index("BEGIN TRANSACTION"),
        text.index("UPDATE x_meta_pipeline_runs"),
        text.index("ASSERT @@row_count = 1 AS 'assert:RUN_FENCED'"),
        text.index("DELETE FROM"),
        text.index("INSERT INTO"),
        text.index("COMMIT TRANSACTION"),
    ]
    assert order == sorted(order)
    for statement in re.findall(r"DELETE FROM[^;]*;", text):
        assert "BETWEEN @start_date AND @end_date" in statement, "so that partitions are pruned"
    update = re.search(r"UPDATE x_meta_pipeline_runs[^;]*;", text)
    assert update is not None
    for needed in ("r.pipeline_logging_id = @pipeline_logging_id", "r.attempt = @attempt", "r.status = 'RUNNING'"):
        assert needed in update[0]
    assert set(re.findall(r"@([a-z]\w*)", text)) - {"row_count"} <= {
        "pipeline_logging_id", "attempt", "provider", "domain", "template", "start_date", "end_date",
        "extract_start_time", "end_time", "take_over", "source_version", "scopes",
    }  # fmt: skip


@every_cost_pipeline
def test_the_transformed_rows_have_the_tables_columns_in_order(pipeline: Pipeline) -> None:
    first = configs(pipeline, TransformConfig)[0]
    made = re.findall(r" AS (\w+)(?:,\n|\n(?=FROM \{))", body(first.sql))
    columns = [field.name for field in SCHEMAS[pipeline.tables[0]].fields]
    assert [name for name in made if name in columns] == columns


@every_pipeline
def test_quality_is_checked_before_publishing_and_compares_rows_with_the_source(pipeline: Pipeline) -> None:
    [config] = configs(pipeline, QualityConfig)
    measured = set(re.findall(r"\bAS ([a-z_]+)\b", "".join(map(body, config.sql))))
    assert {check.measure for check in config.checks} <= measured
    assert len({check.name for check in config.checks}) == len(config.checks)
    against_source = {check.measure for check in config.checks if check.type == "equals_source"}
    assert "row_count" in against_source
    assert all(check.severity == "ERROR" for check in config.checks if check.type == "equals_source")


@every_pipeline
def test_tables_are_partitioned_by_the_date_that_is_replaced(pipeline: Pipeline) -> None:
    for name in pipeline.tables:
        schema = SCHEMAS[name]
        [by] = [field for field in schema.fields if field.name == schema.partition_by]
        assert (by.field_type, by.mode) == ("DATE", "REQUIRED")
        assert all(field.description for field in schema.fields)


@every_compliance_pipeline
def test_compliance_is_observed_in_one_shape_and_published_by_one_script(pipeline: Pipeline) -> None:
    made = re.findall(r" AS ([a-z_]+)(?:,\n|\n(?=FROM ))", body(configs(pipeline, TransformConfig)[0].sql))
    columns = [field["name"] for field in OBSERVATION["fields"]]
    assert made[-len(columns) :] == columns
    files = [*(config.sql for config in configs(pipeline, TransformConfig)), configs(pipeline, PublishConfig)[0].sql]
    files += configs(pipeline, QualityConfig)[0].sql
    shared = {sql.name.rpartition("/pipelines/")[2] for sql in files}
    assert shared >= {f"shared/compliance_{name}.sql" for name in ("findings", "measure", "publish")}
    assert pipeline.tables == ("compliance_history", "compliance_scans")
    assert pipeline.max_days == 1, "a scan sees one day"
    assert "accept_drop" in {parameter.name for parameter in pipeline.parameters}
    checked = {check.measure: check.severity for check in configs(pipeline, QualityConfig)[0].checks}
    for measure in (
        "row_count", "without_check", "without_account", "without_resource", "unknown_status", "unknown_severity",
        "unknown_suppression", "incomplete", "vanished_most",
    ):  # fmt: skip
        assert checked[measure] == "ERROR"


def test_compliance_publishing_names_every_column_of_its_tables_once_and_in_one_order() -> None:
    [config] = configs(next(pipeline for pipeline in PIPELINES if pipeline.domain == "compliance"), PublishConfig)
    found = re.findall(r"INSERT INTO (\w+) \(([^)]*)\)\s*SELECT\s+(.*?)\s+FROM ", body(config.sql), re.DOTALL)
    assert [table for table, _, _ in found] == ["compliance_history", "compliance_history", "compliance_scans"]
    known = {"provider": "@provider", "source": "@template", "valid_from": "@start_date", "scan_date": "@start_date"}
    for table, into, select in found:
        columns = [field.name for field in SCHEMAS[table].fields]
        assert names(into) == columns
        for column, value in zip(columns, names(select), strict=True):
            assert value in (f"@{column}", known.get(column), "''", "DATE '9999-12-31'") or value.endswith(
                (f".{column}", ".complete")
            )


def test_cost_tables_have_the_columns_that_users_rely_on() -> None:
    columns = {field.name for field in SCHEMAS["gcp_cost_billing"].fields}
    assert columns >= {
        "usage_date", "usage_start_time", "usage_end_time", "billing_account_id", "service_id", "service_description",
        "sku_id", "sku_description", "project_id", "location_region", "cost_type", "cost", "credits_total", "net_cost",
        "currency", "invoice_month", "export_time", "labels", "tags", "credits", "pipeline_logging_id",
    }  # fmt: skip
