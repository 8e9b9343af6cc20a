"""Every variable a service reads is explained, shown in ``.env.example``, and works as it is shown there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from libs.settings import ServiceSettings, load, variable_of

EXAMPLE = (Path(__file__).parents[2] / ".env.example").read_text()
SERVICES = ("tenant", "credential", "pipeline_executor", "scheduler")


def settings_of(service: str) -> type[ServiceSettings]:
    found: type[ServiceSettings] = importlib.import_module(f"services.{service}.settings").Settings
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_each_variable_is_explained_and_in_the_example(service: str) -> None:
    settings = settings_of(service)
    assert settings.service == service
    for name, field in settings.model_fields.items():
        assert field.description and field.examples, name
        assert re.search(rf"^(# )?{variable_of(settings, name)}=", EXAMPLE, re.MULTILINE), name


def test_the_example_names_nothing_that_nobody_reads() -> None:
    read = {
        variable_of(settings_of(service), name) for service in SERVICES for name in settings_of(service).model_fields
    }
    assert set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", EXAMPLE, re.MULTILINE)) == read


@pytest.mark.parametrize("service", SERVICES)
def test_the_example_uncommented_makes_settings(service: str, tmp_path: Path) -> None:
    lines = re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+=.*)$", EXAMPLE, re.MULTILINE)
    # The file does not exist here, and the stand-ins for the cloud need the local environment.
    kept = [line for line in lines if not line.startswith("GOOGLE_APPLICATION_CREDENTIALS")]
    local = "\n".join(kept).replace("CONVERGENCE_ENVIRONMENT=prod", "CONVERGENCE_ENVIRONMENT=local")
    (tmp_path / "all.env").write_text(local)
    load(settings_of(service), {}, env_file=tmp_path / "all.env")
