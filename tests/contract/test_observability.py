"""Alerts and dashboard ask for figures that exist, by labels and values that occur, and each alert says what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from convergence.credential.v1 import credential_pb2
from convergence.pipeline_executor.v1 import pipeline_executor_pb2
from convergence.scheduler.v1 import scheduler_pb2
from convergence.tenant.v1 import tenant_pb2
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from libs import errors, metrics
from services.scheduler.domain import Job, State

FOLDER = Path(__file__).parents[2] / "deploy/observability"
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"] if panel["type"] != "row"]
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]},
}
_SUFFIXES: Mapping[type[MetricWrapperBase], tuple[str, ...]] = {
    Counter: ("_total",),
    Gauge: ("",),
    Histogram: ("_bucket", "_sum", "_count"),
}
PUBLISHED = {
    f"{metric._name}{suffix}": set(metric._labelnames)
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
    for suffix in _SUFFIXES[type(metric)]
}
RPCS = {
    f"{service.name}.{method.name}"
    for module in (tenant_pb2, credential_pb2, pipeline_executor_pb2, scheduler_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
VALUES = {
    "rpc": RPCS,
    "job": {job.value for job in Job},
    "state": {state.value for state in State} | {"REAPED"},
    "status": {"FAILED", "COMPLETED", "CANCELLED"},
    "code": {
        kind.kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.Error) and hasattr(kind, "kind")
    }
    | {"OK", "DEADLINE_EXCEEDED", "CANCELLED"},
}
each = pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)


@each
def test_each_expression_asks_for_figures_and_labels_that_exist(expression: str) -> None:
    names = set(re.findall(r"\bconvergence_\w+", expression))
    assert names and names <= PUBLISHED.keys()
    labels = set().union(*(PUBLISHED[name] for name in names))
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= labels | {"le", "instance"}
    for name, selector in re.findall(r"\b(convergence_\w+)\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', selector):
            assert label in PUBLISHED[name]
            known = VALUES.get(label)
            if known is None:
                continue
            if operator in ("=", "!="):
                assert value in known
            else:
                assert any(re.fullmatch(value, one) for one in known)
                alternatives = value.split("|") if "(" not in value else []
                assert all(any(re.fullmatch(one, word) for word in known) for one in alternatives)


def test_each_reason_in_an_alert_occurs_in_the_code() -> None:
    root = FOLDER.parents[1]
    code = "\n".join(path.read_text() for part in ("libs", "services") for path in (root / part).rglob("*.py"))
    for rule in RULES:
        for value in re.findall(r'(?:reason|outcome)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', rule["expr"]):
            for word in value.split("|"):
                assert word == "OK" or word.removesuffix(".*") in code, (rule["alert"], word)


def test_no_figure_is_published_for_nobody() -> None:
    asked = set(re.findall(r"\bconvergence_\w+", "\n".join(EXPRESSIONS.values())))
    unseen = {
        metric._name
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
        and not any(f"{metric._name}{suffix}" in asked for suffix in _SUFFIXES[type(metric)])
    }
    assert unseen == set()


def test_each_alert_has_its_entry_in_the_runbook_and_no_other_is_there() -> None:
    entries = re.findall(r"(?m)^### (\w+)\n(?=\S)", (FOLDER / "README.md").read_text())
    assert entries == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"].endswith(".")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", FOLDER / "alerts.yaml"], check=True, capture_output=True)
