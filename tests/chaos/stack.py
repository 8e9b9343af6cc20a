"""The stack of ``make chaos``: two replicas of each service, an Envoy between the services, a proxy before the store.

``python -m tests.chaos.stack`` supervises it in the foreground, as ``make up`` does its own; the driver starts it. What
is harmed on purpose is named in ``stack.json``: the replicas, the two Envoys' admin ports, the proxy.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.envoy import render
from deploy.local.layout import HOST, PYTHONPATH, SERVICES, Folder, Layout, StackError, environment, free_ports
from deploy.local.supervisor import Child, Supervisor, supervise

REPLICAS = 2
# Whom other services call on the internal port; scheduler has none.
_CALLED = ("tenant", "credential", "pipeline_executor")
_FAULT_TYPE = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
_ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
}


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of a service and its own ports; everybody else dials the Envoys."""

    name: str
    service: str
    public: int
    internal: int
    metrics: int
    authz: int


@dataclass(frozen=True, slots=True)
class ChaosLayout(Layout):
    """A stack whose ``ports`` are those that are dialled: the gateway's, the middle Envoy's, the proxy's."""

    replicas: tuple[Replica, ...] = ()
    store: int = 0
    gateway_admin: int = 0
    between_admin: int = 0

    @classmethod
    def plan(cls, folder: Folder, given: Mapping[str, str]) -> ChaosLayout:
        """Chooses the ports. Raises ``StackError``."""
        base = Layout.plan(folder, given)
        taken = {base.ports.bigquery_rest, base.ports.bigquery_grpc, base.ports.kms, base.ports.authz}
        taken |= {port for ports in (base.ports.public, base.ports.internal) for port in ports.values()}
        take = (port for port in free_ports() if port not in taken and port != base.ports.gateway).__next__
        replicas = tuple(
            Replica(f"{service}-{number}", service, take(), take(), take(), take())
            for service in SERVICES
            for number in range(1, REPLICAS + 1)
        )
        return cls(
            folder=base.folder,
            ports=base.ports,
            project_id=base.project_id,
            admin_api_key=base.admin_api_key,
            given=base.given,
            replicas=replicas,
            store=take(),
            gateway_admin=take(),
            between_admin=take(),
        )

    def replica_environment(self, replica: Replica) -> dict[str, str]:
        """The environment of one process."""
        env = Layout.service_environment(self, replica.service) | {
            "CONVERGENCE_LISTEN": f"{HOST}:{replica.public}",
            "CONVERGENCE_INTERNAL_LISTEN": f"{HOST}:{replica.internal}",
            "CONVERGENCE_METRICS_LISTEN": f"{HOST}:{replica.metrics}",
        }
        if "CONVERGENCE_AUTHZ_LISTEN" in env:
            env["CONVERGENCE_AUTHZ_LISTEN"] = f"{HOST}:{replica.authz}"
        return env

    def emulator_command(self) -> list[str]:
        """The emulator, on the port behind the proxy."""
        command = Layout.bigquery_command(self)
        command[command.index("--port") + 1] = str(self.store)
        return command

    def proxy_command(self) -> list[str]:
        """The proxy before the store, on the port that everybody dials."""
        listen, to = f"{HOST}:{self.ports.bigquery_rest}", f"{HOST}:{self.store}"
        return [sys.executable, "-m", "tests.chaos.store_proxy", "--listen", listen, "--to", to]

    def faulty_gateway_command(self) -> list[str]:
        """The gateway of a deployment, with two endpoints each, and a filter that can delay and abort."""
        command = Layout.gateway_command(self)
        path = self.folder.path / "gateway" / "envoy.yaml"
        config: dict[str, Any] = yaml.safe_load(path.read_text())
        for cluster in config["static_resources"]["clusters"]:
            name = cluster["name"]
            ports = [r.public for r in self.replicas if r.service == name]
            ports = ports or [r.authz for r in self.replicas if r.service == "tenant"]
            cluster["load_assignment"] = _endpoints(name, ports)
        filters = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        filters["http_filters"].insert(-1, _fault("gateway", {"http_status": 503}))
        path.write_text(yaml.safe_dump(config | _runtime(self.gateway_admin), sort_keys=False))
        return command

    def between_command(self) -> list[str]:
        """The Envoy between the services: one listener for each internal port that is dialled."""
        path = self.folder.path / "between" / "envoy.yaml"
        path.parent.mkdir(exist_ok=True)
        resources: dict[str, Any] = {"listeners": [], "clusters": []}
        for service in _CALLED:
            resources["listeners"].append(_listener(service, self.ports.internal[service]))
            resources["clusters"].append(_cluster(service, [r.internal for r in self.replicas if r.service == service]))
        path.write_text(yaml.safe_dump({"static_resources": resources} | _runtime(self.between_admin), sort_keys=False))
        return render.command(path)

    def describe(self) -> dict[str, Any]:
        """As a stack, and where it can be harmed."""
        return Layout.describe(self) | {
            "bigquery_rest": f"http://{HOST}:{self.store}",
            "store_proxy": f"http://{HOST}:{self.ports.bigquery_rest}",
            "gateway_admin": f"http://{HOST}:{self.gateway_admin}",
            "between_admin": f"http://{HOST}:{self.between_admin}",
            "metrics": {r.name: f"http://{HOST}:{r.metrics}/metrics" for r in self.replicas},
            "replicas": {
                r.name: {
                    "service": r.service,
                    "address": f"{HOST}:{r.public}",
                    "internal_address": f"{HOST}:{r.internal}",
                }
                for r in self.replicas
            },
        }


class ChaosSupervisor(Supervisor):
    """Starts the replicas instead of the services, and whoever was killed at once: there will be more of that."""

    layout: ChaosLayout

    def _boot(self) -> None:
        began, layout = time.monotonic(), self.layout
        layout.write_secrets()
        tools = layout.tool_environment()
        self.say("starting BigQuery emulator, its proxy and key service")
        self._add("bigquery", layout.emulator_command(), tools)
        self._add("store_proxy", layout.proxy_command(), tools)
        self._add("kms", layout.kms_command(), tools)
        datasets = f"http://{HOST}:{layout.ports.bigquery_rest}/bigquery/v2/projects/{layout.project_id}/datasets"
        self._until_http(datasets, "bigquery")
        self._until_listens(layout.ports.kms, "kms")
        self._tool("setup-bigquery", "deploy.setup_bigquery_datasets")
        self._add("between", layout.between_command(), tools)
        self.say(f"starting {REPLICAS} replicas of {', '.join(SERVICES)}")
        for replica in layout.replicas:
            command = [sys.executable, "-m", f"services.{replica.service}"]
            self._add(replica.name, command, layout.replica_environment(replica))
        for replica in layout.replicas:
            self._until_listens(replica.public, replica.name)
        self._add("gateway", layout.faulty_gateway_command(), tools)
        self._until_http(f"http://{HOST}:{layout.ports.gateway}/health", "gateway")
        self.ready = True
        self._write_state()
        self.say(f"ready after {time.monotonic() - began:.1f} s")

    def _keep(self, child: Child) -> None:
        child.pause = 0.5
        super()._keep(child)


def _fault(where: str, abort: Mapping[str, int]) -> dict[str, Any]:
    """Does nothing until the admin port sets its runtime keys; ``abort`` is the status it answers with."""
    return {
        "name": "envoy.filters.http.fault",
        "typed_config": {
            "@type": _FAULT_TYPE,
            "delay": {"fixed_delay": "1s", "percentage": {"numerator": 0}},
            "abort": {**abort, "percentage": {"numerator": 0}},
            "delay_percent_runtime": f"chaos.{where}.delay",
            "delay_duration_runtime": f"chaos.{where}.delay_ms",
            "abort_percent_runtime": f"chaos.{where}.abort",
        },
    }


def _runtime(admin: int) -> dict[str, Any]:
    return {
        "admin": {"address": {"socket_address": {"address": HOST, "port_value": admin}}},
        "layered_runtime": {"layers": [{"name": "faults", "admin_layer": {}}]},
    }


def _listener(service: str, port: int) -> dict[str, Any]:
    route = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": service,
            "timeout": "0s",
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,reset-before-request",
                "num_retries": 2,
                "retry_host_predicate": [
                    {
                        "name": "envoy.retry_host_predicates.previous_hosts",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3."
                            "PreviousHostsPredicate"
                        },
                    }
                ],
                "host_selection_retry_max_attempts": 3,
            },
        },
    }
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
        "HttpConnectionManager",
        "stat_prefix": service,
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "http_filters": [_fault("between", {"grpc_status": 14}), _ROUTER],
        "route_config": {"virtual_hosts": [{"name": service, "domains": ["*"], "routes": [route]}]},
    }
    return {
        "name": service,
        "address": {"socket_address": {"address": HOST, "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _cluster(service: str, ports: list[int]) -> dict[str, Any]:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": service,
        "type": "STATIC",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {
                    "http2_protocol_options": {"connection_keepalive": {"interval": "15s", "timeout": "5s"}}
                },
            }
        },
        "health_checks": [
            {
                "timeout": "2s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        "load_assignment": _endpoints(service, ports),
    }


def _endpoints(name: str, ports: list[int]) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": {"socket_address": {"address": HOST, "port_value": p}}}} for p in ports]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}


def main() -> int:
    """Runs the stack of ``DATA_DIR`` until SIGTERM."""
    folder = Folder(Path(os.environ["DATA_DIR"]))
    os.environ["PYTHONPATH"] = PYTHONPATH

    def say(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    try:
        supervise(folder, environment(), say, lambda f, given, s: ChaosSupervisor(ChaosLayout.plan(f, given), s))
    except StackError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
