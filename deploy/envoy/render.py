"""Fills in the gateway's configuration: ``envoy.yaml`` plus addresses, origins and file names gives what Envoy reads.

The local stack calls ``render``; a container runs ``python -m deploy.envoy.render``. Every value enters as JSON, so
none can change the structure. The result holds no secret: Envoy itself reads the gateway's peer token from its file.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from deploy.envoy import pages
from deploy.envoy.replies import REPLIES

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The gateway's own certificate, and whose it accepts: ``spiffe://<trust domain>/<service>`` of ``authority``."""

    certificate: Path
    key: Path
    authority: Path
    trust_domain: str = "convergence"


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """What differs between two gateways. Addresses are ``host:port``; the four services are their public ports.

    The gateway shows the services who it is by a certificate (``tls``) or by a token (``token_file``).
    """

    listen: str = "127.0.0.1:8080"
    tenant: str
    credential: str
    pipeline_executor: str
    scheduler: str
    authz: str
    descriptors: Path
    token_file: Path | None = None
    tls: Tls | None = None
    cors_origins: Sequence[str] = ()
    known_keys: Path = _HERE / "known_keys.lua"
    rate_burst: int = 200
    rate_per_second: int = 100
    max_body_bytes: int = 1_048_576
    trusted_hops: int = 0
    # An OpenTelemetry collector (OTLP over gRPC): requests begin, or continue, a trace there.
    otlp_endpoint: str = ""
    # How many of 100 requests begin one; services follow the gateway. All: over a quarter of the throughput is lost.
    trace_percent: float = 10.0


def write(gateway: Gateway, output: Path) -> None:
    """Writes the configuration and, with certificates, the two files beside it that Envoy watches for renewed ones."""
    output.write_text(render(gateway, output.parent))
    for name, text in _secret_files(gateway.tls).items() if gateway.tls else ():
        (output.parent / name).write_text(text)


def render(gateway: Gateway, folder: Path = Path()) -> str:
    """Returns the configuration as YAML; it is to lie in ``folder``.

    Raises ``ValueError`` for an address that is not ``host:port``, and without exactly one of certificate and token.
    """
    if (gateway.tls is None) == (gateway.token_file is None):
        raise ValueError("the gateway needs a certificate or a token, and not both")
    text = importlib.resources.files(__package__).joinpath("envoy.yaml").read_text()
    host, port = _split(gateway.listen)
    values: dict[str, Any] = {
        "listen_host": host,
        "listen_port": port,
        "descriptors": str(gateway.descriptors),
        "token_file": str(gateway.token_file),
        "known_keys": str(gateway.known_keys),
        "cors_origins": [_origin(origin) for origin in gateway.cors_origins],
        "local_replies": _local_replies(),
        "rate_burst": gateway.rate_burst,
        "rate_per_second": gateway.rate_per_second,
        "max_body_bytes": gateway.max_body_bytes,
        "trusted_hops": gateway.trusted_hops,
    }
    for name in ("tenant", "credential", "pipeline_executor", "scheduler", "authz"):
        values[name] = _endpoint(name, getattr(gateway, name))
    config = yaml.safe_load(Template(text).substitute({name: json.dumps(value) for name, value in values.items()}))
    config = {name: section for name, section in config.items() if not name.startswith("x-")}
    _manager(config)["route_config"]["virtual_hosts"][0]["routes"][:0] = pages.routes()
    if gateway.tls is not None:
        # Envoy asks for a name before it watches a file.
        config["node"] = {"id": "gateway", "cluster": "convergence"}
        _secure(config, gateway.tls, folder.resolve())
    if gateway.otlp_endpoint:
        _trace(config["static_resources"], gateway.otlp_endpoint, gateway.trace_percent)
    return yaml.dump(config, Dumper=_NoAliases, sort_keys=False, width=200)


def command(config: Path, *, concurrency: int = 2) -> list[str]:
    """Returns the command line of Envoy. It dies with the thread that starts it: start it from the main one."""
    binary = Path(sys.executable).with_name("envoy")
    return [
        str(binary) if binary.exists() else "envoy",
        *("--config-path", str(config)),
        *("--concurrency", str(concurrency)),
        *("--log-level", "warning"),
        *("--drain-time-s", "5"),
        "--disable-hot-restart",
    ]


def _manager(config: dict[str, Any]) -> dict[str, Any]:
    """The HTTP connection manager: what one listener does with requests."""
    manager: dict[str, Any] = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0][
        "typed_config"
    ]
    return manager


def _secret_files(tls: Tls) -> dict[str, str]:
    watched = {"path": str(tls.certificate.parent)}
    certificate = {
        "certificate_chain": {"filename": str(tls.certificate)},
        "private_key": {"filename": str(tls.key)},
        "watched_directory": watched,
    }
    authority = {"trusted_ca": {"filename": str(tls.authority)}, "watched_directory": watched}
    kinds = {"certificate": {"tls_certificate": certificate}, "authority": {"validation_context": authority}}
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    return {
        _secret_file(name): yaml.safe_dump({"resources": [{"@type": kind, "name": name, **secret}]})
        for name, secret in kinds.items()
    }


def _secret_file(name: str) -> str:
    return f"gateway-{name}.yaml"


def _secure(config: dict[str, Any], tls: Tls, folder: Path) -> None:
    """Puts TLS on every cluster, each with its own service's identity, and takes away what injects the token."""
    resources = config["static_resources"]
    del resources["secrets"]
    manager = _manager(config)
    manager["http_filters"] = [
        each for each in manager["http_filters"] if each["name"] != "envoy.filters.http.credential_injector"
    ]
    for cluster in resources["clusters"]:
        # The authentication endpoint is a port of the tenant process; it speaks HTTP/1.1.
        authz = cluster["name"] == "authz"
        service = "tenant" if authz else cluster["name"]
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_3",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "alpn_protocols": ["http/1.1" if authz else "h2"],
                    "tls_certificate_sds_secret_configs": [_watched(folder, "certificate")],
                    "combined_validation_context": {
                        "default_validation_context": {
                            "match_typed_subject_alt_names": [
                                {"san_type": "URI", "matcher": {"exact": f"spiffe://{tls.trust_domain}/{service}"}}
                            ]
                        },
                        "validation_context_sds_secret_config": _watched(folder, "authority"),
                    },
                },
            },
        }


def _trace(resources: dict[str, Any], collector: str, percent: float) -> None:
    """Has some requests traced; spans say where and how long, and hold no header but the request's id."""
    for listener in resources["listeners"]:
        for chain in listener["filter_chains"]:
            manager = chain["filters"][0]["typed_config"]
            kind = "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"
            manager["tracing"] = {
                "provider": {
                    "name": "envoy.tracers.opentelemetry",
                    "typed_config": {
                        "@type": kind,
                        "service_name": "gateway",
                        "grpc_service": {"envoy_grpc": {"cluster_name": "collector"}, "timeout": "2s"},
                    },
                },
                "spawn_upstream_span": True,
                "random_sampling": {"value": percent},
            }
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    resources["clusters"].append(
        {
            "name": "collector",
            "cluster_type": next(each["cluster_type"] for each in resources["clusters"]),
            "connect_timeout": "2s",
            "typed_extension_protocol_options": {
                options: {
                    "@type": f"type.googleapis.com/{options}",
                    "explicit_http_config": {"http2_protocol_options": {}},
                }
            },
            "load_assignment": _endpoint("collector", collector),
        }
    )


def _watched(folder: Path, name: str) -> dict[str, Any]:
    return {"name": name, "sds_config": {"path_config_source": {"path": str(folder / _secret_file(name))}}}


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _local_replies() -> dict[str, Any]:
    """Envoy's own answers in the shape of every other error; native gRPC keeps Envoy's plain text."""
    grpc = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    native = {"header_filter": {"header": grpc}}
    transcoded = {"header_filter": {"header": {"name": "x-envoy-original-path", "present_match": True}}}
    json_caller = {
        "or_filter": {
            "filters": [
                {"header_filter": {"header": {**grpc, "invert_match": True, "treat_missing_header_as_empty": True}}},
                transcoded,
            ]
        }
    }
    mappers: list[dict[str, Any]] = [
        {
            "filter": _all(_status(reply.status), json_caller),
            "body_format_override": {"json_format": reply.body(), "content_type": "application/json"},
            "headers_to_add": _come_back(reply.retry_after),
        }
        for reply in REPLIES
    ]
    health = {"header_filter": {"header": {"name": ":path", "string_match": {"exact": "/health"}}}}
    mappers.insert(
        0,
        {
            "filter": _all(_status(200), health),
            "body_format_override": {"json_format": {"status": "SERVING"}, "content_type": "application/json"},
        },
    )
    mappers.append(
        {
            "filter": _all(_status(401), native),
            "body_format_override": {
                "text_format_source": {"inline_string": "Send one valid API key in the x-api-key header."}
            },
        }
    )
    return {"mappers": mappers}


def _come_back(seconds: int) -> list[dict[str, Any]]:
    header = {"key": "retry-after", "value": str(seconds)}
    return [{"header": header, "append_action": "ADD_IF_ABSENT"}] if seconds else []


def _all(*filters: dict[str, Any]) -> dict[str, Any]:
    return {"and_filter": {"filters": list(filters)}}


def _status(status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": f"gateway.reply.{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{address!r} is not host:port")
    return host.strip("[]"), int(port)


def _endpoint(name: str, address: str) -> dict[str, Any]:
    host, port = _split(address)
    endpoint = {"address": {"socket_address": {"address": host, "port_value": port}}}
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]}


def _origin(origin: str) -> dict[str, Any]:
    return {"safe_regex": {"regex": ".*"}} if origin == "*" else {"exact": origin}


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the configuration: ``python -m deploy.envoy.render --output envoy.yaml --tenant tenant:50051 …``."""
    parser = argparse.ArgumentParser(description="write the gateway's configuration")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--listen", default="0.0.0.0:8080")
    for name in ("tenant", "credential", "pipeline_executor", "scheduler", "authz"):
        parser.add_argument("--" + name.replace("_", "-"), required=True, metavar="HOST:PORT")
    parser.add_argument("--descriptors", type=Path, required=True)
    parser.add_argument("--token-file", type=Path, help="where there are no certificates")
    for name in ("tls-certificate", "tls-key", "tls-authority"):
        parser.add_argument("--" + name, type=Path)
    parser.add_argument("--trust-domain", default="convergence")
    parser.add_argument("--cors-origins", type=json.loads, default=[], help="JSON array")
    parser.add_argument("--otlp-endpoint", default="", metavar="HOST:PORT", help="where traces are sent to")
    parser.add_argument("--trace-percent", type=float, default=10.0, help="of 100 requests, how many begin a trace")
    parser.add_argument(
        "--trusted-hops", type=int, default=0, help="proxies before the gateway that append to X-Forwarded-For"
    )
    arguments = vars(parser.parse_args(argv))
    output: Path = arguments.pop("output")
    files = [arguments.pop(f"tls_{name}") for name in ("certificate", "key", "authority")]
    trust_domain = arguments.pop("trust_domain")
    if any(files) and not all(files):
        parser.error("--tls-certificate, --tls-key and --tls-authority go together")
    tls = Tls(certificate=files[0], key=files[1], authority=files[2], trust_domain=trust_domain) if all(files) else None
    try:
        write(Gateway(tls=tls, **arguments), output)
    except ValueError as exc:
        parser.error(str(exc))


if __name__ == "__main__":
    main()
