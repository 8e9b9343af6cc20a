"""The deployment's manifests as data: what the base's files say, and what each overlay adds to the configuration."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from libs.settings import ServiceSettings
from services.scheduler.jobs import JobSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUSTOMIZE = DEPLOY / "kustomize"
BASE = KUSTOMIZE / "base"
POLICIES = KUSTOMIZE / "components/network-policies"
CERTIFICATES = KUSTOMIZE / "components/certificates"
OVERLAYS = ("dev", "prod")
SCRIPTS: Mapping[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# What a pod is called and what its context is called: names in Kubernetes have no underscore.
SERVICES = {
    "tenant": "tenant",
    "credential": "credential",
    "pipeline-executor": "pipeline_executor",
    "scheduler": "scheduler",
}

type Doc = dict[str, Any]


def documents(folder: Path) -> list[Doc]:
    """Every document of the files that the folder's kustomization lists."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    files = [folder / name for name in listed if name.endswith(".yaml")]
    return [doc for file in files for doc in yaml.safe_load_all(file.read_text())]


def of_kind(kind: str, folder: Path = BASE) -> dict[str, Doc]:
    """The documents of one kind by name."""
    return {doc["metadata"]["name"]: doc for doc in documents(folder) if doc["kind"] == kind}


def configuration(overlay: str) -> dict[str, str]:
    """The literals of the ConfigMap ``convergence`` as the overlay leaves them."""
    found: dict[str, str] = {}
    for folder in (BASE, KUSTOMIZE / "overlays" / overlay):
        for generator in yaml.safe_load((folder / "kustomization.yaml").read_text())["configMapGenerator"]:
            assert generator["name"] == "convergence"
            found |= dict(literal.split("=", 1) for literal in generator["literals"])
    return found


@dataclass(frozen=True)
class Container:
    """One container with the pod it is in."""

    name: str
    pod: Doc
    spec: Doc

    @property
    def command(self) -> str:
        """Its console script, or what it runs otherwise."""
        return " ".join(self.spec["command"])

    @property
    def settings(self) -> type[ServiceSettings] | None:
        """The settings its process reads; ``None`` for what is not ours (Envoy, and what writes its configuration)."""
        return settings_of(self.command)

    @property
    def literals(self) -> dict[str, str]:
        """Its own variables that have a literal value."""
        return {each["name"]: each["value"] for each in self.spec.get("env", ()) if "value" in each}

    @property
    def variables(self) -> set[str]:
        """The names of its own variables."""
        return {each["name"] for each in self.spec.get("env", ())}


def settings_of(command: str) -> type[ServiceSettings] | None:
    """The settings type of a console script."""
    target = SCRIPTS.get(command)
    if target is None:
        return None
    module = target.partition(":")[0]
    if module == "services.scheduler.jobs":
        return JobSettings
    if module == "deploy.setup_bigquery_datasets":
        return ServiceSettings
    found: type[ServiceSettings] = importlib.import_module(module.removesuffix(".main") + ".settings").Settings
    return found


def containers() -> Iterator[Container]:
    """Every container of the base, init containers included."""
    for doc in documents(BASE):
        template = {
            "Deployment": lambda spec: spec["template"],
            "Job": lambda spec: spec["template"],
            "CronJob": lambda spec: spec["jobTemplate"]["spec"]["template"],
        }.get(doc["kind"])
        if template is None:
            continue
        pod = template(doc["spec"])
        for spec in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            yield Container(f"{doc['metadata']['name']}/{spec['name']}", pod, spec)
