"""What is deployed is what the code is: names of variables, ports, probes, commands, and who may talk to whom."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from convergence.credential.v1 import credential_pb2
from convergence.pipeline_executor.v1 import pipeline_executor_pb2
from convergence.scheduler.v1 import scheduler_pb2
from convergence.tenant.v1 import tenant_pb2

from deploy.envoy import render
from libs import access
from libs.settings import load, variable_of, write_peer_tokens
from libs.tls import server_name
from services.tenant.settings import Settings as TenantSettings
from tests.support import manifests
from tests.support.certificates import Authority
from tests.support.manifests import BASE, CERTIFICATES, DEPLOY, KUSTOMIZE, OVERLAYS, POLICIES, SERVICES, Container

CONTAINERS = list(manifests.containers())
OURS = [container for container in CONTAINERS if container.settings is not None]
TOOLS = Path(sys.executable).parent
each_container = pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container.name)
each_of_ours = pytest.mark.parametrize("container", OURS, ids=lambda container: container.name)


# --- files ---


def test_no_file_is_left_out() -> None:
    for folder in (BASE, POLICIES, CERTIFICATES, *(KUSTOMIZE / "overlays" / overlay for overlay in OVERLAYS)):
        listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
        there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert {name for name in listed if name.endswith(".yaml")} == there, folder


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_would_take_each_overlay(overlay: str) -> None:
    built = subprocess.run(
        [TOOLS / "kubectl", "kustomize", KUSTOMIZE / "overlays" / overlay], capture_output=True, text=True, check=True
    )
    kinds = set()
    for doc in yaml.safe_load_all(built.stdout):
        if not doc["apiVersion"].startswith(("cloud.google.com/", "cert-manager.io/")):
            kubernetes_validate.validate(doc, "1.37", strict=True)
        kinds.add(doc["kind"])
        assert doc["kind"] == "Namespace" or doc["metadata"]["namespace"].startswith("convergence")
    assert kinds >= {"ConfigMap", "CronJob", "Deployment", "HorizontalPodAutoscaler", "Job", "NetworkPolicy"}
    # The generated name of the configuration has reached all who read it.
    assert "name: convergence\n" not in re.sub(r"(?m)^  name: convergence\n", "", built.stdout)


# --- settings ---


@each_container
def test_each_variable_is_a_setting_of_its_process(container: Container) -> None:
    if container.settings is None:
        assert container.command in ("envoy", "python -m deploy.envoy.render")
        return
    known = {variable_of(container.settings, field) for field in container.settings.model_fields}
    assert container.variables <= known


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_variable_of_the_configuration_is_a_setting(overlay: str) -> None:
    known = {
        variable_of(container.settings, field)
        for container in OURS
        if container.settings is not None
        for field in container.settings.model_fields
    }
    assert set(manifests.configuration(overlay)) <= known


@pytest.mark.parametrize("overlay", OVERLAYS)
@each_of_ours
def test_each_process_would_start_with_what_it_is_given(container: Container, overlay: str, tmp_path: Path) -> None:
    assert container.settings is not None
    tls = Authority(tmp_path).issue(container.settings.service)
    environment = {**(manifests.configuration(overlay) if "envFrom" in container.spec else {}), **container.literals}
    files = {"CERTIFICATE": tls.certificate, "KEY": tls.key, "AUTHORITY": tls.authority}
    assert {f"CONVERGENCE_TLS_{name}" for name in files} <= environment.keys()
    environment |= {f"CONVERGENCE_TLS_{name}": str(path) for name, path in files.items()}
    for secret in {"ADMIN_API_KEY", "CONVERGENCE_PAGE_KEY"} & container.variables:
        environment[secret] = "0123456789abcdef01234567"
    settings = load(container.settings, environment, env_file=None)
    if container.settings.service:
        assert settings.tls() == tls and settings.page_secret() if "ports" in container.spec else settings.tls()
    assert settings.environment == (overlay if "envFrom" in container.spec else "prod")
    assert not settings.onboarding_open and (overlay == "dev" or not settings.reflection)
    # What is killed at the end of the pod's grace has not been settled.
    if "CONVERGENCE_DRAIN_SECONDS" in environment:
        assert container.pod["spec"]["terminationGracePeriodSeconds"] >= settings.drain_seconds + 10
    written = [path["mountPath"] for path in container.spec["volumeMounts"] if not path.get("readOnly")]
    if hasattr(settings, "staging_dir"):
        assert str(settings.staging_dir) in written


# --- pods ---


@each_container
def test_each_container_may_do_little(container: Container) -> None:
    pod, security = container.pod["spec"], container.spec["securityContext"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["serviceAccountName"] in manifests.of_kind("ServiceAccount")
    assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container.spec["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container.spec["resources"]["limits"]
    assert container.spec["image"] == "convergence"
    assert container.command in manifests.SCRIPTS or container.settings is None
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    assert {mount["name"] for mount in container.spec["volumeMounts"]} <= volumes


def test_there_is_one_deployment_for_each_service_and_the_gateway() -> None:
    deployments = manifests.of_kind("Deployment")
    assert set(deployments) == {*SERVICES, "gateway"}
    assert set(manifests.of_kind("PodDisruptionBudget")) == set(deployments)
    # The scheduler is one writer: nothing scales it.
    assert set(manifests.of_kind("HorizontalPodAutoscaler")) == set(deployments) - {"scheduler"}
    assert deployments["scheduler"]["spec"]["replicas"] == 1
    for name, deployment in deployments.items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == name
        assert deployment["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}
        assert ("replicas" in deployment["spec"]) == (name == "scheduler"), "the autoscaler decides"


@pytest.mark.parametrize("name", SERVICES)
def test_ports_and_probes_are_those_the_process_opens(name: str) -> None:
    [container] = [one for one in OURS if one.name == f"{name}/{name}"]
    given = manifests.configuration("prod") | container.literals
    ports = {port["name"]: port["containerPort"] for port in container.spec["ports"]}
    opened = {
        "grpc": "CONVERGENCE_LISTEN",
        "health": "CONVERGENCE_HEALTH_LISTEN",
        "metrics": "CONVERGENCE_METRICS_LISTEN",
    }
    if name != "scheduler":
        opened["grpc-internal"] = "CONVERGENCE_INTERNAL_LISTEN"
    if name == "tenant":
        opened["authz"] = "CONVERGENCE_AUTHZ_LISTEN"
    assert ports == {port: int(given[variable].rpartition(":")[2]) for port, variable in opened.items()}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container.spec[probe]["grpc"] == {"port": ports["health"]}
    service = manifests.of_kind("Service")[name]["spec"]
    # Headless, or one connection would send every call to one pod.
    assert service["clusterIP"] == "None" and service["selector"] == {"app.kubernetes.io/name": name}
    offered = {port["targetPort"]: port["port"] for port in service["ports"]}
    assert offered == {port: number for port, number in ports.items() if port not in ("health", "metrics")}


def test_addresses_lead_to_ports_of_services() -> None:
    offered = {
        f"{name}:{port['port']}": port["targetPort"]
        for name, service in manifests.of_kind("Service").items()
        for port in service["spec"]["ports"]
    }
    for overlay in OVERLAYS:
        for variable, value in manifests.configuration(overlay).items():
            if variable.endswith("_ADDRESS"):
                assert offered[value] == "grpc-internal", variable
    for container in OURS:
        if address := container.literals.get("CONVERGENCE_SCHEDULER_ADDRESS"):
            assert offered[address] == "grpc" and address.startswith("scheduler:")


def test_the_gateway_is_rendered_from_what_its_pod_is_given(tmp_path: Path) -> None:
    [container] = [one for one in CONTAINERS if one.name == "gateway/configuration"]
    output = tmp_path / "envoy.yaml"
    arguments = [
        argument.replace("/run/gateway/envoy.yaml", str(output)).replace("$(CORS_ORIGINS)", "[]")
        for argument in container.spec["args"]
    ]
    render.main([argument.replace("$(TRUSTED_HOPS)", "2") for argument in arguments])
    text = output.read_text()
    ports = set(re.findall(r"port_value: (\d+)", text))
    assert ports == {"8080", "50051", "50053"}, "no cluster leads to an internal port"
    [envoy] = [one for one in CONTAINERS if one.name == "gateway/gateway"]
    mounts = {mount["mountPath"] for mount in envoy.spec["volumeMounts"]}
    assert {"/run/gateway", "/etc/convergence/tls"} <= mounts
    # Who it is and whom it believes, on each of the five clusters.
    assert text.count("spiffe://convergence/") == 5 and "gateway-certificate.yaml" in text
    assert "/etc/convergence/tls/tls.key" in (tmp_path / "gateway-certificate.yaml").read_text()
    assert "/run/gateway/envoy.yaml" in envoy.spec["args"]


# --- who may talk to whom ---


def call_graph() -> set[tuple[str, str, int]]:
    """Every arrow of the contract as (from, to, port): what the rules' peers may call, and the edge."""
    pods = {context: pod for pod, context in SERVICES.items()} | {"cron": "cron"}
    public, internal = 50051, 50052
    arrows = {("gateway", pod, public) for pod in SERVICES} | {("gateway", "tenant", 50053)}
    modules: list[tuple[str, Any]] = [
        ("tenant", tenant_pb2),
        ("credential", credential_pb2),
        ("pipeline-executor", pipeline_executor_pb2),
        ("scheduler", scheduler_pb2),
    ]
    for pod, module in modules:
        names = [service.full_name for service in module.DESCRIPTOR.services_by_name.values()]
        for rule in access.rules_of(names).values():
            arrows |= {(pods[peer], pod, internal if rule.peers_only else public) for peer in rule.peers}
    return arrows


def test_network_policies_are_the_call_graph_of_the_contract() -> None:
    def name_of(selector: Any) -> str:
        [(label, name)] = selector["podSelector"]["matchLabels"].items()
        assert label == "app.kubernetes.io/name"
        return str(name)

    incoming, outgoing = set(), set()
    for name, policy in manifests.of_kind("NetworkPolicy", POLICIES).items():
        spec = policy["spec"]
        if name.endswith(("-in", "-out")):
            [rule] = spec["ingress" if name.endswith("-in") else "egress"]
            [other] = rule["from" if name.endswith("-in") else "to"]
            for port in rule["ports"]:
                assert port["protocol"] == "TCP"
                ends = (name_of(other), name_of(spec))
                if name.endswith("-in"):
                    incoming.add((*ends, port["port"]))
                else:
                    outgoing.add((*reversed(ends), port["port"]))
    assert incoming == outgoing == call_graph()


def test_all_else_is_denied() -> None:
    policies = manifests.of_kind("NetworkPolicy", POLICIES)
    assert policies["deny-all"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    others = {name for name in policies if not name.endswith(("-in", "-out"))}
    assert others == {"deny-all", "dns", "clients-to-gateway", "google-apis", "prometheus"}
    [selected] = policies["google-apis"]["spec"]["podSelector"]["matchExpressions"]
    assert set(selected["values"]) == {*SERVICES, "setup"}
    base = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    assert base["components"] == ["../components/network-policies", "../components/certificates"]


def test_each_process_has_a_certificate_of_its_own_and_nobody_elses() -> None:
    peers = {**SERVICES, "gateway": "gateway", "cron": "cron"}
    certificates = manifests.of_kind("Certificate", CERTIFICATES)
    assert set(certificates) == {*peers, "authority"}
    for name, peer in peers.items():
        spec = certificates[name]["spec"]
        assert spec["uris"] == [f"spiffe://convergence/{peer}"] and spec["dnsNames"] == [server_name(peer)]
        assert spec["secretName"] == f"tls-{name}" and {"server auth", "client auth"} <= set(spec["usages"])
    for container in CONTAINERS:
        used = [volume["secret"]["secretName"] for volume in container.pod["spec"]["volumes"] if "secret" in volume]
        name = container.pod["metadata"]["labels"]["app.kubernetes.io/name"]
        assert used == ([f"tls-{name}"] if name in peers else []), container.name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_who_speaks_to_google_has_an_account_there(overlay: str) -> None:
    patches = yaml.safe_load((KUSTOMIZE / "overlays" / overlay / "kustomization.yaml").read_text())["patches"]
    accounts = {
        patch["target"]["name"]: patch["patch"] for patch in patches if patch["target"]["kind"] == "ServiceAccount"
    }
    assert set(accounts) == {*SERVICES, "setup"} <= set(manifests.of_kind("ServiceAccount"))
    assert all(f"convergence-{name}@" in patch for name, patch in accounts.items())


# --- image and compose ---


def test_compose_runs_the_same_processes_with_settings_they_know() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(SERVICES) | {"gateway", "setup", "peers", "bigquery", "kms"} == set(compose)
    for name, service in compose.items():
        settings = manifests.settings_of(" ".join(service["command"]))
        if settings is None:
            continue
        environment = {key: value for key, value in service["environment"].items() if key != "CONVERGENCE_PEERS_DIR"}
        load(settings, environment, env_file=None)
        known = {variable_of(settings, field) for field in settings.model_fields}
        assert set(environment) - {"ADMIN_API_KEY"} <= known, name
        assert ("ADMIN_API_KEY" in environment) == (settings is TenantSettings)
    published = [port for service in compose.values() for port in service.get("ports", ())]
    assert published == ["127.0.0.1:8080:8080"]
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in compose.values())


def test_the_image_names_every_command_and_ends_unprivileged() -> None:
    linted = subprocess.run([TOOLS / "hadolint", DEPLOY / "Dockerfile"], check=False, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout
    text = (DEPLOY / "Dockerfile").read_text()
    assert all(script in text for script in manifests.SCRIPTS if script.startswith("convergence-"))
    stages = re.findall(r"(?m)^FROM (\S+)(?: AS (\S+))?$", text)
    assert stages[-1] == ("run", "convergence"), "the last stage is the one for a deployment"
    assert re.findall(r"(?m)^USER (.+)$", text) == ["65532:65532"]
    assert "--constraint requirements.lock" in text and "contracts.binpb" in text


# --- without Kubernetes, and the build ---


def test_cloud_run_runs_the_same_processes_with_settings_they_know(tmp_path: Path) -> None:
    spec = yaml.safe_load((DEPLOY / "cloudrun/service.yaml").read_text())["spec"]["template"]["spec"]
    containers = {container["name"]: container for container in spec["containers"]}
    assert set(containers) == {*SERVICES, "gateway"}
    tokens = {item["path"] for volume in spec["volumes"] if "secret" in volume for item in volume["secret"]["items"]}
    assert tokens == {f"{peer}.token" for peer in ("gateway", "cron", *SERVICES.values())}
    write_peer_tokens(tmp_path, [token.removesuffix(".token") for token in tokens])
    opened: list[str] = []
    given: dict[str, dict[str, str]] = {}
    for name in SERVICES:
        container = containers[name]
        [command] = container["command"]
        settings = manifests.settings_of(command)
        assert settings is not None and command == f"convergence-{name}"
        known = {variable_of(settings, field) for field in settings.model_fields}
        assert {each["name"] for each in container["env"]} <= known
        given[name] = {each["name"]: each.get("value", "0123456789abcdef01234567") for each in container["env"]}
        loaded = load(settings, given[name] | {"CONVERGENCE_PEERS_DIR": str(tmp_path)}, env_file=None)
        assert loaded.peers().own_token and loaded.environment == "prod"
        opened += [value for variable, value in given[name].items() if variable.endswith("LISTEN")]
        for probe in ("startupProbe", "livenessProbe"):
            assert given[name]["CONVERGENCE_HEALTH_LISTEN"].endswith(f":{container[probe]['grpc']['port']}")
    ports = [address.rpartition(":")[2] for address in opened]
    assert len(set(ports)) == len(ports), "they share one address"
    internal = {name: given[name]["CONVERGENCE_INTERNAL_LISTEN"] for name in SERVICES}
    for variables in given.values():
        for name in ("tenant", "credential", "pipeline-executor"):
            assert variables[f"CONVERGENCE_{SERVICES[name].upper()}_ADDRESS"] == internal[name]
    [line] = containers["gateway"]["args"]
    for name in SERVICES:
        assert f"--{name} {given[name]['CONVERGENCE_LISTEN']} " in line
    assert f"--authz {given['tenant']['CONVERGENCE_AUTHZ_LISTEN']} " in line


def test_the_build_does_what_the_readme_says_and_in_that_order() -> None:
    build = yaml.safe_load((DEPLOY / "cloudbuild.yaml").read_text())
    steps = {step["id"]: step for step in build["steps"]}
    assert list(steps) == ["test", "build", "push", "migrate", "rollout"]
    assert steps["push"]["waitFor"] == ["test", "build"]
    text = (DEPLOY / "cloudbuild.yaml").read_text()
    assert set(re.findall(r"\$\{(_[A-Z]+)\}", text)) <= set(build["substitutions"])
    assert set(re.findall(r"deploy/[\w/.-]+(?:yaml|file)", text, re.IGNORECASE)) <= {
        "deploy/cloudbuild.yaml",
        "deploy/Dockerfile",
    }
    names = " ".join([*SERVICES, "gateway"])
    assert f'names="{names}"' in text
    readme = (DEPLOY / "README.md").read_text()
    for words in ("delete job setup --ignore-not-found", "app.kubernetes.io/name in (configuration, setup)", names):
        assert words in readme and words in text


def test_the_checklist_names_real_files_roles_and_secrets() -> None:
    readme = (DEPLOY / "README.md").read_text()
    for path in re.findall(r"`((?:kustomize|cloudrun|observability)/[\w./-]*)`", readme):
        assert (DEPLOY / path).exists(), path
    for account in (*SERVICES, "setup"):
        assert re.search(rf"grant {account} roles/", readme), account
    secrets = {
        source["secretKeyRef"]["name"]
        for container in CONTAINERS
        for source in (each.get("valueFrom", {}) for each in container.spec.get("env", ()))
        if "secretKeyRef" in source
    }
    assert secrets == set(re.findall(r"create secret generic ([\w-]+)", readme))
