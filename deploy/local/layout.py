"""What a local stack consists of: its folder, ports, secrets, and the command and environment of each process.

The supervisor starts what this module lists. Everything listens on the loopback address only; everything that lasts is
in the stack's data folder, so two stacks with two folders and two ports do not meet.
"""

from __future__ import annotations

import base64
import json
import os
import random
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from libs.settings import write_peer_tokens

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "protos" / "gen")])
HOST = "127.0.0.1"
SERVICES = ("tenant", "credential", "pipeline_executor", "scheduler")
PEERS = ("gateway", *SERVICES, "cron")
CUSTOMER_PROJECT = "sample-customer"
STORAGE_ACCOUNT = "samplecustomer"
DEFAULT_ADMIN_API_KEY = "local-development-admin-key"
DEFAULT_CORS_ORIGINS = '["http://localhost:3000"]'
# Below the range of outgoing connections, so that a port stays ours while its process restarts.
_PORTS = range(20_000, 32_000)


class StackError(Exception):
    """The stack cannot do what was asked; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The paths below a stack's data folder."""

    path: Path

    @classmethod
    def of_environment(cls) -> Folder:
        """The folder that ``DATA_DIR`` names, relative to the project."""
        return cls((ROOT / os.environ.get("DATA_DIR", ".data")).resolve())

    @property
    def stack_file(self) -> Path:
        """There while the stack is ready: what tools need to know of it."""
        return self.path / "stack.json"

    @property
    def pids_file(self) -> Path:
        """There while any process of the stack may be left: who they are."""
        return self.path / "pids.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the supervisor as long as it lives."""
        return self.path / "supervisor.lock"

    @property
    def logs(self) -> Path:
        """One log for each process."""
        return self.path / "logs"

    @property
    def peers(self) -> Path:
        """One token for each process, made anew at each start."""
        return self.path / "peers"

    def make(self) -> None:
        """Creates the folder with what every process expects in it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)


def environment() -> dict[str, str]:
    """Returns the caller's environment over the ``.env`` file's, as services read them; empty values do not count."""
    written = {name: value for name, value in dotenv_values(ROOT / ".env").items() if value}
    return {**written, **{name: value for name, value in os.environ.items() if value}}


@dataclass(frozen=True, slots=True)
class Ports:
    """Every port of one stack; fixed while it runs."""

    gateway: int
    bigquery_rest: int
    bigquery_grpc: int
    kms: int
    objects: int
    authz: int
    public: Mapping[str, int]
    internal: Mapping[str, int]
    metrics: Mapping[str, int]

    @classmethod
    def choose(cls, gateway: int, objects: int = 0) -> Ports:
        """Checks that the gateway's port is free and finds free ones for the rest; ``objects`` is taken if it is.

        Raises ``StackError``.
        """
        if not is_free(gateway):
            raise StackError(
                f"port {gateway} is taken by another program; stop it, or choose another: PORT={gateway + 1} make up"
            )
        take = (port for port in free_ports() if port not in (gateway, objects)).__next__
        return cls(
            gateway=gateway,
            bigquery_rest=take(),
            bigquery_grpc=take(),
            kms=take(),
            objects=objects if objects and is_free(objects) else take(),
            authz=take(),
            public={name: take() for name in SERVICES},
            internal={name: take() for name in SERVICES},
            metrics={name: take() for name in SERVICES},
        )


def free_ports() -> Iterator[int]:
    """Ports that nobody listens on, in no order."""
    return (port for port in random.SystemRandom().sample(_PORTS, 400) if is_free(port))


def is_free(port: int) -> bool:
    """True if nobody listens on the port; a wildcard listener counts too."""
    for host in (HOST, "0.0.0.0"):
        with socket.socket() as probe:
            # As servers do: a port whose last connections still linger is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


@dataclass(frozen=True, slots=True)
class Layout:
    """One stack, complete: made once at start by the supervisor."""

    folder: Folder
    ports: Ports
    project_id: str
    admin_api_key: str = field(repr=False)
    given: Mapping[str, str] = field(repr=False)

    @classmethod
    def plan(cls, folder: Folder, given: Mapping[str, str]) -> Layout:
        """Returns the stack that the folder and the environment describe. Raises ``StackError``."""
        port = given.get("PORT", "8080")
        if not port.isdecimal() or not 1 <= int(port) <= 65_535:
            raise StackError(f"PORT must be a number from 1 to 65535, for example PORT=8080; it is {port!r}")
        # Stored credentials hold the object stores' address: it stays as long as it can.
        before = folder.path / "objects.port"
        ports = Ports.choose(int(port), int(before.read_text()) if before.exists() else 0)
        before.write_text(str(ports.objects))
        return cls(
            folder=folder,
            ports=ports,
            project_id=given.get("GCP_PROJECT_ID", "convergence-local"),
            admin_api_key=given.get("ADMIN_API_KEY", DEFAULT_ADMIN_API_KEY),
            given=given,
        )

    def write_secrets(self) -> None:
        """Makes this start's peer tokens, and on the first start the sample customers' keys."""
        self.folder.peers.mkdir(mode=0o700, exist_ok=True)
        for old in self.folder.peers.glob("*.token"):
            old.unlink()
        write_peer_tokens(self.folder.peers, PEERS)
        _write_once(self._sample_key_file, lambda: _service_account_key(CUSTOMER_PROJECT))
        _write_once(self._object_keys_file, _object_keys)

    @property
    def _sample_key_file(self) -> Path:
        return self.folder.path / "sample-service-account.json"

    @property
    def _object_keys_file(self) -> Path:
        return self.folder.path / "sample-object-keys.json"

    @property
    def objects_folder(self) -> Path:
        """What the local object stores hold: plain files."""
        return self.folder.path / "objects"

    @property
    def kms_key(self) -> str:
        """The key that wraps the tenants' credentials."""
        return f"projects/{self.project_id}/locations/us/keyRings/convergence/cryptoKeys/credentials"

    def sample_credentials(self) -> dict[str, dict[str, Any]]:
        """Per provider the whole body that stores the sample customer's credential."""
        from deploy.local import sample_data
        from deploy.local.objects import Keys

        keys = Keys(**json.loads(self._object_keys_file.read_text()))
        objects = f"http://{HOST}:{self.ports.objects}"
        return {
            "gcp": {
                "provider": "GCP",
                "credentials": json.loads(self._sample_key_file.read_text()),
                "source": {
                    "project_id": CUSTOMER_PROJECT,
                    "dataset_id": sample_data.DATASET,
                    "table_id": sample_data.TABLE,
                },
            },
            "aws": {
                "provider": "AWS",
                "credentials": {
                    "access_key_id": keys.access_key_id,
                    "secret_access_key": keys.secret_access_key,
                },
                "source": {
                    "bucket": sample_data.BUCKET,
                    "prefix": sample_data.REPORT_PREFIX,
                    "endpoint_url": objects,
                },
            },
            "azure": {
                "provider": "AZURE",
                "credentials": {"sas_token": keys.sas(datetime(2099, 1, 1, tzinfo=UTC))},
                "source": {
                    "storage_account": keys.account,
                    "container": sample_data.CONTAINER,
                    "directory": sample_data.EXPORT_DIRECTORY,
                    "endpoint_url": f"{objects}/{keys.account}",
                },
            },
        }

    def tool_environment(self) -> dict[str, str]:
        """What a tool needs to work on this stack's warehouse and key service as a service of it would."""
        return {
            **{name: value for name, value in self.given.items() if name != "PYTHONPATH"},
            "PYTHONPATH": PYTHONPATH,
            "PYTHONUNBUFFERED": "1",
            "GCP_PROJECT_ID": self.project_id,
            "CONVERGENCE_ENVIRONMENT": "local",
            "CONVERGENCE_BIGQUERY_ENDPOINT": f"http://{HOST}:{self.ports.bigquery_rest}",
            "CONVERGENCE_BIGQUERY_STORAGE_ENDPOINT": f"{HOST}:{self.ports.bigquery_grpc}",
            "CONVERGENCE_KMS_ENDPOINT": f"{HOST}:{self.ports.kms}",
            "CONVERGENCE_KMS_KEY": self.kms_key,
            "CONVERGENCE_PEERS_DIR": str(self.folder.peers),
            **{f"CONVERGENCE_{name.upper()}_ADDRESS": f"{HOST}:{port}" for name, port in self.ports.internal.items()},
            # The scheduler's jobs stand on its public port; it opens no internal one.
            "CONVERGENCE_SCHEDULER_ADDRESS": f"{HOST}:{self.ports.public['scheduler']}",
        }

    def service_environment(self, service: str) -> dict[str, str]:
        """The complete environment of one service."""
        env = self.tool_environment() | {
            "PORT": str(self.ports.gateway),
            "ADMIN_API_KEY": self.admin_api_key,
            # Open here, whatever a .env meant for a deployment says; only the caller's own environment closes it.
            "ONBOARDING": os.environ.get("ONBOARDING") or "open",
            "CORS_ORIGINS": self.given.get("CORS_ORIGINS", DEFAULT_CORS_ORIGINS),
            "CONVERGENCE_LISTEN": f"{HOST}:{self.ports.public[service]}",
            "CONVERGENCE_INTERNAL_LISTEN": f"{HOST}:{self.ports.internal[service]}",
            "CONVERGENCE_METRICS_LISTEN": f"{HOST}:{self.ports.metrics[service]}",
            "CONVERGENCE_REFLECTION": self.given.get("CONVERGENCE_REFLECTION", "true"),
            "CONVERGENCE_DRAIN_SECONDS": self.given.get("CONVERGENCE_DRAIN_SECONDS", "5"),
        }
        if service == "tenant":
            env["CONVERGENCE_AUTHZ_LISTEN"] = f"{HOST}:{self.ports.authz}"
        else:
            env.pop("ADMIN_API_KEY")
        if service == "pipeline_executor":
            env["CONVERGENCE_STAGING_DIR"] = str(self.folder.path / "staging")
        return env

    def bigquery_command(self) -> list[str]:
        """The emulator of BigQuery."""
        command = [sys.executable, "-m", "deploy.local.bigquery", "--data-dir", str(self.folder.path / "bigquery")]
        command += ["--port", str(self.ports.bigquery_rest), "--grpc-port", str(self.ports.bigquery_grpc)]
        if threads := os.environ.get("LOCAL_BIGQUERY_THREADS"):
            command += ["--threads", threads]
        return [*command, "--project", self.project_id]

    def kms_command(self) -> list[str]:
        """The stand-in for Cloud KMS."""
        command = [sys.executable, "-m", "deploy.local.kms", "--listen", f"{HOST}:{self.ports.kms}"]
        return [*command, "--key-file", str(self.folder.path / "kms" / "keys.json"), "--create-key", self.kms_key]

    def objects_command(self) -> list[str]:
        """The stand-in for S3, STS and Azure Blob storage."""
        command = [sys.executable, "-m", "deploy.local.objects", "--listen", f"{HOST}:{self.ports.objects}"]
        return [*command, "--folder", str(self.objects_folder), "--keys", str(self._object_keys_file)]

    def gateway_command(self) -> list[str]:
        """Envoy, with the configuration and descriptors this writes for it."""
        from deploy.envoy import descriptors, render

        folder = self.folder.path / "gateway"
        folder.mkdir(exist_ok=True)
        descriptors.write(folder / "contracts.binpb")
        config = folder / "envoy.yaml"
        try:
            origins = json.loads(self.given.get("CORS_ORIGINS", DEFAULT_CORS_ORIGINS))
        except ValueError:
            origins = []  # the services say what is wrong with it, and do not start
        gateway = render.Gateway(
            listen=f"{HOST}:{self.ports.gateway}",
            authz=f"{HOST}:{self.ports.authz}",
            token_file=self.folder.peers / "gateway.token",
            descriptors=folder / "contracts.binpb",
            cors_origins=origins,
            tenant=f"{HOST}:{self.ports.public['tenant']}",
            credential=f"{HOST}:{self.ports.public['credential']}",
            pipeline_executor=f"{HOST}:{self.ports.public['pipeline_executor']}",
            scheduler=f"{HOST}:{self.ports.public['scheduler']}",
            otlp_endpoint=self.given.get("CONVERGENCE_OTLP_ENDPOINT", ""),
            trace_percent=100,
        )
        config.write_text(render.render(gateway))
        return render.command(config)

    def describe(self) -> dict[str, Any]:
        """What ``stack.json`` says, but for the processes."""
        samples = self.sample_credentials()
        return {
            "rest": f"http://{HOST}:{self.ports.gateway}",
            "grpc": f"{HOST}:{self.ports.gateway}",
            "bigquery_rest": f"http://{HOST}:{self.ports.bigquery_rest}",
            "bigquery_grpc": f"{HOST}:{self.ports.bigquery_grpc}",
            "kms": f"{HOST}:{self.ports.kms}",
            "metrics": {name: f"http://{HOST}:{port}/metrics" for name, port in self.ports.metrics.items()},
            "project_id": self.project_id,
            "customer_project_id": CUSTOMER_PROJECT,
            "admin_api_key": self.admin_api_key,
            "objects": f"http://{HOST}:{self.ports.objects}",
            "objects_dir": str(self.objects_folder),
            "sample_credential": samples["gcp"],
            "sample_credentials": samples,
            "data_dir": str(self.folder.path),
            "logs_dir": str(self.folder.logs),
            "environment": {
                name: value
                for name, value in self.tool_environment().items()
                if name.startswith(("CONVERGENCE_", "GCP_"))
            },
        }


def _write_once(path: Path, make: Callable[[], Mapping[str, str]]) -> None:
    if not path.exists():
        temporary = path.with_suffix(".new")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(make(), indent=2))
        temporary.replace(path)


def _object_keys() -> dict[str, str]:
    """An AWS key and a storage account's key as those clouds make them; nobody else knows them."""
    return {
        "access_key_id": "AKIA" + "".join(secrets.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") for _ in range(16)),
        "secret_access_key": base64.b64encode(secrets.token_bytes(30)).decode(),
        "account": STORAGE_ACCOUNT,
        "account_key": base64.b64encode(secrets.token_bytes(64)).decode(),
    }


def _service_account_key(project_id: str) -> dict[str, str]:
    """A key as it is downloaded from Google Cloud, for an account of the sample customer; nobody else knows it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private_key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    email = f"billing-reader@{project_id}.iam.gserviceaccount.com"
    return {
        "type": "service_account",
        "project_id": project_id,
        "private_key_id": secrets.token_hex(20),
        "private_key": private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        "client_email": email,
        "client_id": str(secrets.randbelow(9 * 10**20) + 10**20),
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": "https://oauth2.googleapis.com/token",
        "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
        "client_x509_cert_url": f"https://www.googleapis.com/robot/v1/metadata/x509/{email.replace('@', '%40')}",
        "universe_domain": "googleapis.com",
    }
