"""The command line keeps its promises: the contract's names, help with examples that parse, no secret as argument."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import typer.main
from convergence.pipeline_executor.v1 import pipeline_executor_pb2
from convergence.scheduler.v1 import scheduler_pb2
from convergence.tenant.v1 import tenant_pb2

from services.cli import api, cloud
from services.cli.commands import keys, money, runs, schedules, tenants
from services.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "services/cli").rglob("*.py"))
# Keywords of our own, beside fields of a request.
OWN = {"limit", "empty"}
# Options through which a key may come: they name a file, or are no secret at all.
HARMLESS = {"--key-file", "--idempotency-key"}


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands with their path."""
    for name, one in (group or typer.main.get_command(app)).commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, (*path, name))
        else:
            yield (*path, name), one


COMMANDS = dict(commands())
EACH = pytest.mark.parametrize("path", COMMANDS, ids=" ".join)


def calls() -> Iterator[tuple[str, str, set[str]]]:
    """Where, rpc and keywords of every call that names an rpc."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                continue
            rpc = node.args[0].value
            if isinstance(rpc, str) and re.fullmatch(r"[a-z_]+\.[A-Z][A-Za-z]+", rpc):
                yield f"{source.name}:{node.lineno}", rpc, {word.arg for word in node.keywords if word.arg} - OWN


def test_every_call_is_one_of_the_contract_and_every_rpc_is_called() -> None:
    called = set()
    for where, rpc, keywords in calls():
        called.add(rpc)
        fields = set(api._method(rpc).input_type.fields_by_name)
        assert keywords <= fields, (where, rpc, keywords - fields)
    assert called == {f"{context}.{method.name}" for context in api.SERVICES for method in api._methods(context)}


def test_what_is_tried_again_has_an_identity() -> None:
    for rpc in api.IDEMPOTENT:
        assert "request_id" in api._method(rpc).input_type.fields_by_name
        assert all("request_id" in keywords for _, called, keywords in calls() if called == rpc)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tenants.Plan, tenant_pb2.Tenant.Plan),
        (tenants.State, tenant_pb2.Tenant.State),
        (keys.Role, tenant_pb2.ApiKey.Role),
        (runs.Status, pipeline_executor_pb2.Run.Status),
        (schedules.Overlap, scheduler_pb2.Schedule.OverlapPolicy),
        (schedules.Catchup, scheduler_pb2.Schedule.CatchupPolicy),
    ],
)
def test_choices_are_the_contracts(ours: type[StrEnum], theirs: Any) -> None:
    assert {each.value for each in ours} == {name for name, number in theirs.items() if number}


def test_metrics_are_the_contracts() -> None:
    text = (ROOT / "protos/convergence/pipeline_executor/v1/pipeline_executor.proto").read_text()
    assert all(f'"{metric}"' in text for metric in money.Metric)


@EACH
def test_each_command_has_help_that_fits_and_examples_that_parse(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    first = (command.help or "").split("\n\n")[0].replace("\n", " ")
    # Lists of commands cut longer ones.
    assert 10 < len(first) <= 60 and first.endswith("."), first
    lines = [line.strip() for line in command.epilog.splitlines() if line.strip().startswith("$")]
    assert lines
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for line in lines:
        words = shlex.split(line.rpartition("|")[2].removeprefix("$"))
        words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S+", word)]
        assert tuple(words[: len(path) + 1]) == ("convergence", *path), line
        assert {word for word in words if word.startswith("-") and word != "-"} <= options, line


@EACH
def test_each_command_answers_as_json_and_takes_no_secret(path: tuple[str, ...]) -> None:
    names = {name for parameter in COMMANDS[path].params for name in parameter.opts}
    assert {"--output", "--profile"} <= names
    told = {name for name in names if re.search(r"key|secret|token|password", name)} - HARMLESS
    # Ids of keys, which are no secret.
    assert told <= {"api_key_id"}, told


def test_help_and_completion_load_nothing_slow() -> None:
    script = (
        "import sys\nfrom services.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'grpc', 'google.protobuf', 'rich', 'convergence'} & set(sys.modules)), file=sys.stderr)"
    )
    for arguments in (["--help"], ["runs", "--help"], ["costs", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "Usage:" in done.stdout
        assert done.stderr.strip() == "[]"


def test_the_doctor_knows_the_permissions_and_roles_that_the_texts_name() -> None:
    readme = (ROOT / "README.md").read_text()
    for permission, role in cloud.PERMISSIONS.items():
        [row] = [line for line in readme.splitlines() if line.lstrip().startswith(f"| `{permission}`")]
        assert f"`{role}`" in row
    granted = set(re.findall(r"`grant (\S+) (roles/\S+)`", (ROOT / "deploy/README.md").read_text()))
    assert granted == {(who, role) for who, roles in cloud.PROJECT_ROLES.items() for role in roles}
