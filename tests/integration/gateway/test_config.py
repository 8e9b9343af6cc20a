"""The text that Envoy is given: who it leads to, and that no value becomes structure in it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.envoy import descriptors
from deploy.envoy.render import Gateway, command, render


def config(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        name: f"{name}:1" for name in ("tenant", "credential", "pipeline_executor", "scheduler", "authz")
    }
    values |= {"token_file": Path("/t"), "descriptors": Path("/d")}
    found: dict[str, Any] = yaml.safe_load(render(Gateway(**(values | changes))))
    return found


def test_no_cluster_leads_to_an_internal_port_and_nobody_administers() -> None:
    found = config()
    names = [cluster["name"] for cluster in found["static_resources"]["clusters"]]
    assert names == ["tenant", "credential", "pipeline_executor", "scheduler", "authz"]
    assert found.keys() == {"static_resources", "overload_manager"}


@pytest.mark.parametrize("value", ["host", "host:", ":1", "host:port", "host:1\n  evil: true"])
def test_an_address_cannot_become_structure(value: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        config(tenant=value)


def test_values_cannot_become_structure() -> None:
    evil = Path('/x"\n  admin: {}\n#${port}')
    assert config(descriptors=evil, cors_origins=['http://a"}]']).keys() == config().keys()


def test_envoy_accepts_what_is_rendered(tmp_path: Path) -> None:
    descriptors.write(tmp_path / "d")
    (tmp_path / "t").write_text("token")
    for origins in ([], ["*"], ["https://a.example", "https://b.example"]):
        values = {name: f"{name}:1" for name in ("tenant", "credential", "pipeline_executor", "scheduler", "authz")}
        text = render(
            Gateway(
                **values,
                listen="0.0.0.0:8080",
                token_file=tmp_path / "t",
                descriptors=tmp_path / "d",
                cors_origins=origins,
            )
        )
        (tmp_path / "envoy.yaml").write_text(text)
        checked = subprocess.run(
            [*command(tmp_path / "envoy.yaml"), "--mode", "validate"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr[-2000:]
