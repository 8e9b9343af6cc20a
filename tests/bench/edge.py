"""What an authenticated read costs at the edge, beside the same read without authentication and beside FastAPI.

All variants answer the same list on the same machine in the same run, in turns; k6 reads with 1 and 32 connections. CPU
is what the variant's own processes used (Envoy, service, authentication), not the generator's. ``x_open`` is the rate
beside the same gateway with no authentication at all, ``x_fastapi`` beside FastAPI alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from deploy.envoy import render
from tests.support.ports import free_port
from tests.support.stack import Stack, Tenant, until

PATH = "/api/v1/pipelines/templates"
SCRIPT = Path(__file__).with_name("edge.js")
SECONDS, ROUNDS, CONNECTIONS = 4, 3, (1, 32)
OURS, OPEN, FASTAPI, FASTAPI_ENVOY = "ours", "ours, not authenticated", "FastAPI", "FastAPI behind Envoy"


@dataclass(frozen=True)
class Variant:
    """One way to answer the read: where, and the processes whose CPU it takes."""

    name: str
    address: str
    pids: tuple[int, ...]

    def cpu(self) -> float:
        """Seconds of CPU its processes used so far."""
        return sum(_ticks(pid) for pid in self.pids) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    """User and system time of a process, in clock ticks: the 14th and 15th field of Linux's ``/proc/<pid>/stat``."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def measure(stack: Stack, tenant: Tenant) -> list[dict[str, Any]]:
    """One result per variant and number of connections: rate, latencies, CPU per request and ratios."""
    with tempfile.TemporaryDirectory() as made, variants(stack, tenant, Path(made)) as found:
        runs: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(ROUNDS):
            for connections in CONNECTIONS:
                for variant in found:
                    figures = load(variant, tenant.key, connections, Path(made))
                    runs.setdefault((variant.name, connections), []).append(figures)
    middle = {key: {name: statistics.median(f[name] for f in all_) for name in all_[0]} for key, all_ in runs.items()}
    return [_result(name, connections, middle) for name, connections in middle]


def _result(name: str, connections: int, middle: dict[tuple[str, int], dict[str, float]]) -> dict[str, Any]:
    figures = middle[name, connections]
    return {
        "variant": name,
        "connections": connections,
        "requests_per_second": round(figures["rate"]),
        "p50_ms": round(figures["p50"], 2),
        "p99_ms": round(figures["p99"], 2),
        "cpu_us_per_request": round(figures["cpu"] * 1e6),
        "x_open": round(figures["rate"] / middle[OPEN, connections]["rate"], 2),
        "x_fastapi": round(figures["rate"] / middle[FASTAPI, connections]["rate"], 2),
    }


def load(variant: Variant, key: str, connections: int, folder: Path) -> dict[str, float]:
    """Reads for ``SECONDS``: rate, latencies in ms, and seconds of CPU per request."""
    before = variant.cpu()
    figures = k6(SCRIPT, folder, URL=variant.address + PATH, KEY=key, VUS=connections, SECONDS=SECONDS)
    assert not figures["failed"], f"{variant.name}: {figures['failed']} requests failed"
    return {**figures, "cpu": (variant.cpu() - before) / figures["requests"]}


def k6(script: Path, folder: Path, **given: Any) -> dict[str, float]:
    """Runs a load script and returns what it measured; ``given`` is its environment, lists as JSON."""
    summary = folder / "summary.json"
    texts = {name: json.dumps(value) if isinstance(value, list) else str(value) for name, value in given.items()}
    subprocess.run(
        [str(Path(sys.executable).with_name("k6")), "run", "--quiet", "--no-usage-report", str(script)],
        env=dict(os.environ) | texts | {"SUMMARY": str(summary)},
        check=True,
        capture_output=True,
    )
    figures: dict[str, float] = json.loads(summary.read_text())
    return figures


@contextlib.contextmanager
def variants(stack: Stack, tenant: Tenant, folder: Path) -> Iterator[Sequence[Variant]]:
    """All variants, running: two gateways beside the stack's own (its rate limit is in the way), and FastAPI."""
    with contextlib.ExitStack() as running:
        opened = _open(unlimited(stack), tenant.tenant_id)
        found = [
            running.enter_context(gateway(name, config, stack, folder))
            for name, config in ((OURS, unlimited(stack)), (OPEN, opened))
        ]
        port = free_port()
        keys, templates = folder / "keys.json", folder / "templates.json"
        prefix = "_".join(tenant.key.split("_")[:3])
        digest = hashlib.sha256(tenant.key.encode()).hexdigest()
        keys.write_text(json.dumps({prefix: {"hash": digest, "role": "ADMIN"}}))
        with stack.http(tenant.key) as http:
            templates.write_text(json.dumps(http.get(PATH).raise_for_status().json()["templates"]))
        command = [sys.executable, "-m", "tests.bench.peer_fastapi", str(port), str(keys), str(templates)]
        pid = running.enter_context(_process(command))
        found.append(Variant(FASTAPI, f"http://127.0.0.1:{port}", (pid,)))
        front = free_port()
        envoy = running.enter_context(_envoy(_proxy(front, port), folder / "proxy.yaml"))
        found.append(Variant(FASTAPI_ENVOY, f"http://127.0.0.1:{front}", (envoy, pid)))
        for variant in found:
            wait(variant, tenant.key)
        yield found


@contextlib.contextmanager
def gateway(name: str, config: dict[str, Any], stack: Stack, folder: Path) -> Iterator[Variant]:
    """A gateway of that configuration beside the stack's own, on a port of its own."""
    port = free_port()
    manager(config)  # the listener's shape is checked before anything starts
    config["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"] = port
    with _envoy(config, folder / f"{port}.yaml") as pid:
        services = (stack.process("tenant").pid, stack.process("pipeline_executor").pid)
        yield Variant(name, f"http://127.0.0.1:{port}", (pid, *services))


def wait(variant: Variant, key: str) -> None:
    """Returns once the variant answers."""

    def status() -> int:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(variant.address + PATH, headers={"x-api-key": key}).status_code
        return 0

    until(status, lambda code: code == 200, timeout=60, what=f"{variant.name} answers")


def manager(config: dict[str, Any]) -> dict[str, Any]:
    """The connection manager of the only listener; its shape is checked."""
    [filter_] = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    typed: dict[str, Any] = filter_["typed_config"]
    return typed


def unlimited(stack: Stack) -> dict[str, Any]:
    """The stack's own gateway without its rate limit."""
    config: dict[str, Any] = yaml.safe_load((Path(stack.path).parent / "gateway" / "envoy.yaml").read_text())
    http = manager(config)
    http["http_filters"] = [each for each in http["http_filters"] if "local_ratelimit" not in each["name"]]
    return config


def _open(config: dict[str, Any], tenant_id: str) -> dict[str, Any]:
    """The same gateway with no authentication: every call is that tenant's."""
    http = manager(config)
    asking = ("envoy.filters.http.ext_authz", "envoy.filters.http.lua")
    http["http_filters"] = [each for each in http["http_filters"] if each["name"] not in asking]
    http["route_config"]["request_headers_to_add"] = [
        {"header": {"key": key, "value": value}}
        for key, value in (("x-tenant-id", tenant_id), ("x-role", "ADMIN"), ("x-key-id", "bench"))
    ]
    for route in http["route_config"]["virtual_hosts"][0]["routes"]:
        route.get("typed_per_filter_config", {}).pop("envoy.filters.http.ext_authz", None)
    return config


def _proxy(port: int, upstream: int) -> dict[str, Any]:
    """An Envoy that only passes on."""
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    address = {"socket_address": {"address": "127.0.0.1", "port_value": upstream}}
    chain = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"type.googleapis.com/{kind}",
            "stat_prefix": "peer",
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "peer",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "peer"}}],
                    }
                ]
            },
        },
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "peer",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [{"filters": [chain]}],
                }
            ],
            "clusters": [
                {
                    "name": "peer",
                    "connect_timeout": "2s",
                    "load_assignment": {
                        "cluster_name": "peer",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                    },
                }
            ],
        }
    }


@contextlib.contextmanager
def _envoy(config: dict[str, Any], path: Path) -> Iterator[int]:
    path.write_text(yaml.dump(config))
    with _process(render.command(path)) as pid:
        yield pid


@contextlib.contextmanager
def _process(command: Sequence[str]) -> Iterator[int]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)
