"""Pipeline templates: what a good one is, and that a bad one is named by file and field."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from libs import errors
from services.pipeline_executor.templates import TemplateInvalid, Templates, parse

GOOD = """
description: A test.
credential_provider: GCP
max_days: 7
tables: [gcp_cost_billing]
parameters:
  - {name: label, type: string, description: A label., required: true}
  - {name: limit, type: integer, description: A limit., default: 5}
  - {name: deep, type: boolean, description: Whether deep., default: false}
  - {name: since, type: date, description: From when.}
steps:
  - {name: extract, type: extract, timeout_seconds: 60, config: {dataset: billing_export}}
  - {name: load, type: load, depends_on: [extract], timeout_seconds: 60, config: {extraction: extract}}
  - name: transform
    type: transform
    depends_on: [load]
    timeout_seconds: 60
    retry: {attempts: 3, base_seconds: 0.5, cap_seconds: 4}
    config: {sql: transform.sql, tables: {raw: load}}
  - name: publish
    type: publish
    depends_on: [transform]
    timeout_seconds: 60
    config:
      sql: [shared/publish_begin.sql, publish.sql, shared/publish_commit.sql]
      table: transform
      extraction: extract
"""


def good() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(GOOD)
    return loaded


def refused(body: dict[str, Any] | str, path: str = "gcp/cost/test.yaml") -> str:
    text = body if isinstance(body, str) else yaml.safe_dump(body)
    with pytest.raises(TemplateInvalid) as caught:
        parse(path, text)
    return str(caught.value)


def test_a_good_template_is_whole() -> None:
    pipeline = parse("gcp/cost/test.yaml", GOOD)
    assert pipeline.id == "gcp/cost/test"
    assert [step.name for step in pipeline.steps] == ["extract", "load", "transform", "publish"]
    assert pipeline.steps[2].retry.attempts == 3
    assert pipeline.steps[2].timeout.total_seconds() == 60
    assert pipeline.credential_provider == "GCP"
    assert pipeline.revision == parse("gcp/cost/test.yaml", GOOD).revision
    assert pipeline.revision != parse("gcp/cost/test.yaml", GOOD.replace("A test.", "Another test.")).revision
    drifting = GOOD.replace("{dataset: billing_export}", "{dataset: billing_export, schema_drift: POLICY}")
    assert parse("gcp/cost/test.yaml", drifting.replace("POLICY", "freeze")).revision != pipeline.revision
    assert "schema_drift" in refused(drifting.replace("POLICY", "ignore"))


def test_the_projects_own_templates_load_and_are_found_in_any_case() -> None:
    templates = Templates.load()
    assert "gcp/cost/billing" in [pipeline.id for pipeline in templates.list()]
    assert templates.get("GCP", "Cost", "BILLING").template == "billing"


@pytest.mark.parametrize(
    "names",
    [
        ("gcp", "cost", "nothing"),
        ("gcp", "cost/billing", ""),
        ("..", "cost", "billing"),
        ("gcp", "cost", "billing.yaml"),
    ],
)
def test_what_is_not_there_is_not_found(names: tuple[str, str, str]) -> None:
    with pytest.raises(errors.NotFound) as caught:
        Templates.load().get(*names)
    assert caught.value.reason == "TEMPLATE_NOT_FOUND"


@pytest.mark.parametrize(
    "path",
    [
        "cost/test.yaml",
        "gcp/cost/deep/test.yaml",
        "gcp/cost/test.yml",
        "GCP/cost/test.yaml",
        "gcp/../test.yaml",
        "/a/b.yaml",
    ],
)
def test_a_template_lies_where_its_name_says(path: str) -> None:
    assert refused(GOOD, path).startswith(f"pipelines/{path}: must be")


def test_every_fault_names_file_and_field() -> None:
    assert "not YAML" in refused("steps: [")
    assert "written twice: ['max_days']" in refused(GOOD + "max_days: 8\n")
    assert "provider folder must be one of" in refused(GOOD, "nowhere/cost/test.yaml")
    cases: list[tuple[str, Any, str]] = [
        ("max_days", 0, "max_days: Input should be greater than or equal to 1"),
        ("max_days", "7", "max_days: Input should be a valid integer"),
        ("colour", "red", "colour: Extra inputs are not permitted"),
        ("tables", ["gcp_cost"], "tables: no schema in libs/tables/gcp"),
        ("credential_provider", "AWS", "credential_provider: must be GCP"),
    ]
    for field, value, text in cases:
        assert refused({**good(), field: value}).startswith(f"pipelines/gcp/cost/test.yaml: {text}")


def with_step(index: int, **changes: Any) -> dict[str, Any]:
    body = good()
    body["steps"][index] = {**body["steps"][index], **changes}
    return body


TRANSFORM = {"sql": "transform.sql", "tables": {"raw": "load"}}
PUBLISH = {"sql": "publish.sql", "table": "transform", "extraction": "extract"}


@pytest.mark.parametrize(
    ("index", "changes", "text"),
    [
        (0, {"type": "scrape"}, "type: must be one of ['extract', 'load', 'publish', 'quality', 'transform']"),
        (0, {"config": {"dataset": "bills"}}, "config.dataset: Value error, must be one of ['billing_export'"),
        (0, {"config": {"dataset": "billing_export", "x": 1}}, "config.x: Extra inputs are not permitted"),
        (0, {"timeout_seconds": 0}, "timeout_seconds: Input should be greater than 0"),
        (0, {"depends_on": ["load"]}, "depends_on: ['load'] must be steps above this one"),
        (1, {"name": "extract"}, "name: extract is there twice"),
        (1, {"retry": {"attempts": 99}}, "retry.attempts: Input should be less than or equal to 10"),
        (1, {"depends_on": []}, "config: reads step extract, which is not among its depends_on"),
        (1, {"config": {"extraction": "no"}}, "config: reads step no, which is not among its depends_on"),
        (2, {"config": {**TRANSFORM, "tables": {"raw": "extract"}}}, "config: step extract leaves no StagedTable"),
        (
            2,
            {"config": {**TRANSFORM, "sql": "no.sql"}},
            "config.sql: Value error, there is no file pipelines/gcp/cost/no",
        ),
        (
            2,
            {"config": {**TRANSFORM, "sql": "shared/no.sql"}},
            "config.sql: Value error, there is no file pipelines/shared/no",
        ),
        (
            2,
            {"config": {**TRANSFORM, "sql": "shared/../x.sql"}},
            "config.sql: Value error, must be the name of a .sql file",
        ),
        (
            2,
            {"config": {**TRANSFORM, "sql": "../cost/x.sql"}},
            "config.sql: Value error, must be the name of a .sql file",
        ),
        (
            2,
            {"config": {**TRANSFORM, "sql": "measure.sql"}},
            "config.sql: Value error, must create {target} with OPTIONS",
        ),
        (3, {"config": {**PUBLISH, "sql": "transform.sql"}}, "config.sql: Value error, must be one fenced transaction"),
    ],
)
def test_a_bad_step_is_named(index: int, changes: dict[str, Any], text: str) -> None:
    assert refused(with_step(index, **changes)).startswith(f"pipelines/gcp/cost/test.yaml: steps.{index}.{text}")


def test_one_publication_ends_it_and_waits_for_all() -> None:
    body = good()
    assert "exactly one publish step, as the last" in refused({**body, "steps": body["steps"][:3]})
    twice = [*body["steps"], {**body["steps"][3], "name": "again"}]
    assert "exactly one publish step, as the last" in refused({**body, "steps": twice})
    beside = {"name": "beside", "type": "extract", "timeout_seconds": 1, "config": {"dataset": "billing_export"}}
    text = refused({**body, "steps": [*body["steps"][:3], beside, body["steps"][3]]})
    assert "steps.4.depends_on: publishing must wait for ['beside']" in text


def test_all_faults_are_told_at_once() -> None:
    text = refused({**good(), "max_days": 0, "colour": "red"})
    assert len(text.splitlines()) == 2


# ------------------------------------------------------------------------------------------------- parameters


def test_parameters_are_checked_and_filled_in() -> None:
    pipeline = parse("gcp/cost/test.yaml", GOOD)
    given = {"label": "x", "limit": 7.0, "source": {"project_id": "p"}, "deep": None}
    assert pipeline.check_parameters(given) == {"label": "x", "limit": 7, "deep": False, "since": None}


def test_bad_parameters_are_named_one_by_one() -> None:
    pipeline = parse("gcp/cost/test.yaml", GOOD)
    given = {"limit": 1.5, "deep": "yes", "since": "2025-11-31", "colour": "red"}
    with pytest.raises(errors.InvalidArgument) as caught:
        pipeline.check_parameters(given)
    assert caught.value.reason == "PARAMETERS_INVALID"
    fields = [violation.field for violation in caught.value.field_violations]
    assert fields == [
        "parameters.colour",
        "parameters.label",
        "parameters.limit",
        "parameters.deep",
        "parameters.since",
    ]
    assert "is not a parameter of gcp/cost/test" in caught.value.message


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), "5", [5]])
def test_an_integer_is_a_whole_number(value: Any) -> None:
    pipeline = parse("gcp/cost/test.yaml", GOOD)
    with pytest.raises(errors.InvalidArgument):
        pipeline.check_parameters({"label": "x", "limit": value})


def test_a_parameter_may_be_one_of_a_few() -> None:
    few = {"name": "state", "type": "string", "description": "d", "values": ["ON", "OFF"], "default": "ON"}
    pipeline = parse("gcp/cost/test.yaml", yaml.safe_dump({**good(), "parameters": [few]}))
    assert pipeline.check_parameters({}) == {"state": "ON"}
    assert pipeline.check_parameters({"state": "OFF"}) == {"state": "OFF"}
    with pytest.raises(errors.InvalidArgument, match="must be one of ON, OFF"):
        pipeline.check_parameters({"state": "on"})


def test_what_is_read_is_the_providers_own() -> None:
    assert "gcp has no data set ['cost_export']" in refused(with_step(0, config={"dataset": "cost_export"}))


def test_parameters_of_a_template_make_sense() -> None:
    for parameter, text in [
        ({"name": "source", "type": "string", "description": "d"}, "source is every pipeline's"),
        ({"name": "a", "type": "string", "description": "d", "required": True, "default": "x"}, "has none"),
        ({"name": "a", "type": "integer", "description": "d", "default": "x"}, "must be a integer"),
        ({"name": "a", "type": "string", "description": "d", "values": ["x"], "default": "y"}, "hold the default"),
        ({"name": "a", "type": "integer", "description": "d", "values": ["1"]}, "must be strings"),
    ]:
        assert text in refused({**good(), "parameters": [parameter]})
