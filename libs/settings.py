"""Settings every process shares, read from the environment once, in ``main()``, and passed down as plain values.

Each service subclasses ``ServiceSettings``. A wrong variable stops the process at start with one line that names it and
says what a good value looks like; no message ever holds a secret's value.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from pydantic_settings.sources.utils import parse_env_vars

from libs.tls import Tls, TlsInvalid

_PREFIX = "CONVERGENCE_"
_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_TOKEN_SUFFIX = ".token"


def _address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if not match or int(match.group(1)) > 65_535:
        raise ValueError("must be host:port")
    return value


Address = Annotated[str, AfterValidator(_address)]


class SettingsInvalid(Exception):
    """The environment does not make settings; the text has one line for each variable at fault."""


class Peers:
    """The processes this one knows, by their tokens; tokens are kept and compared as digests only."""

    def __init__(self, own_token: str = "", tokens: Mapping[str, str] | None = None) -> None:
        self.own_token = own_token
        self._names = {_digest(token): name for name, token in (tokens or {}).items()}

    def name_of(self, token: str) -> str | None:
        """Returns the peer whose token this is, or ``None``."""
        return self._names.get(_digest(token))


class ServiceSettings(BaseSettings):
    """What all processes read. Plain names have no prefix; every other variable starts with ``CONVERGENCE_``."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
        protected_namespaces=(),
    )

    service: ClassVar[str] = ""

    gcp_project_id: str = Field(
        validation_alias="GCP_PROJECT_ID",
        pattern=r"^[a-z][a-z0-9\-]{4,28}[a-z0-9]$",
        description="the Google Cloud project that holds the warehouse",
        examples=["my-project-123"],
    )
    google_application_credentials: Path | None = Field(
        default=None,
        validation_alias="GOOGLE_APPLICATION_CREDENTIALS",
        description="an existing service account key file; leave it unset to use the workload's own identity",
        examples=["/etc/convergence/service-account.json"],
    )
    admin_api_key: SecretStr | None = Field(
        default=None,
        validation_alias="ADMIN_API_KEY",
        description="the platform admin's API key, at least 16 characters; make one with `openssl rand -hex 24`",
        examples=["(48 random hex digits)"],
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        validation_alias="CORS_ORIGINS",
        description="the web origins that may call the API from a browser, as a JSON array",
        examples=['["http://localhost:3000"]'],
    )
    onboarding: Literal["open", "admin"] = Field(
        default="admin",
        validation_alias="ONBOARDING",
        description="the answer to who may onboard a tenant: `admin` (the admin key) or `open` (anybody)",
        examples=["admin"],
    )
    port: int = Field(
        default=8080,
        validation_alias="PORT",
        ge=0,
        le=65_535,
        description="the gateway's HTTP port",
        examples=["8080"],
    )

    environment: Literal["local", "dev", "prod"] = Field(
        default="prod",
        description="the place this process runs in; only `local` accepts endpoints that stand in for the cloud",
        examples=["prod"],
    )
    listen: Address = Field(
        default="0.0.0.0:50051",
        description="the address of the public gRPC port, which the gateway forwards to",
        examples=["0.0.0.0:50051"],
    )
    internal_listen: Address = Field(
        default="0.0.0.0:50052",
        description="the address of the internal gRPC port, for the other services only",
        examples=["0.0.0.0:50052"],
    )
    health_listen: Address | None = Field(
        default=None,
        description="the address of a further port that only answers health checks, in plain text; for probes",
        examples=["0.0.0.0:50054"],
    )
    metrics_listen: Address | None = Field(
        default=None,
        description="the address at which Prometheus reads this process's figures, in plain text; unset, there is none",
        examples=["0.0.0.0:9464"],
    )
    otlp_endpoint: Address | None = Field(
        default=None,
        description="an OpenTelemetry collector that traces are sent to (OTLP over gRPC, plain text); unset, none are",
        examples=["otel-collector:4317"],
    )
    tenant_address: Address = Field(
        default="tenant:50052",
        description="the internal port of the tenant service",
        examples=["tenant:50052"],
    )
    credential_address: Address = Field(
        default="credential:50052",
        description="the internal port of the credential service",
        examples=["credential:50052"],
    )
    pipeline_executor_address: Address = Field(
        default="pipeline-executor:50052",
        description="the internal port of the pipeline executor",
        examples=["pipeline-executor:50052"],
    )
    bigquery_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+/?$",
        description="the URL of a BigQuery stand-in; only with CONVERGENCE_ENVIRONMENT=local",
        examples=["http://127.0.0.1:9050"],
    )
    bigquery_storage_endpoint: Address | None = Field(
        default=None,
        description="the address of a BigQuery Storage stand-in; only with CONVERGENCE_ENVIRONMENT=local",
        examples=["127.0.0.1:9060"],
    )
    bigquery_location: str = Field(
        default="US",
        pattern=r"^[A-Za-z0-9\-]{2,40}$",
        description="the location all datasets are created in",
        examples=["US"],
    )
    kms_endpoint: Address | None = Field(
        default=None,
        description="the address of a Cloud KMS stand-in; only with CONVERGENCE_ENVIRONMENT=local",
        examples=["127.0.0.1:9070"],
    )
    kms_key: str = Field(
        default="",
        pattern=r"^(projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+)?$",
        description="the full name of the Cloud KMS key that wraps the tenants' credentials",
        examples=["projects/my-project-123/locations/us/keyRings/convergence/cryptoKeys/credentials"],
    )
    peers_dir: Path | None = Field(
        default=None,
        description="a directory with one file `<peer>.token` for each process this one talks to, its own included",
        examples=["/etc/convergence/peers"],
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="this process's certificate chain (PEM), of spiffe://<trust domain>/<peer>; set, ports speak TLS",
        examples=["/etc/convergence/tls/tls.crt"],
    )
    tls_key: Path | None = Field(
        default=None,
        description="the key of CONVERGENCE_TLS_CERTIFICATE (PEM)",
        examples=["/etc/convergence/tls/tls.key"],
    )
    tls_authority: Path | None = Field(
        default=None,
        description="the certificates (PEM) of the authority that signs every process's",
        examples=["/etc/convergence/tls/ca.crt"],
    )
    trust_domain: str = Field(
        default="convergence",
        pattern=r"^[a-z0-9][a-z0-9.\-]{0,62}$",
        description="the trust domain in the processes' SPIFFE ids; another one for each deployment of one authority",
        examples=["convergence"],
    )
    page_key: SecretStr | None = Field(
        default=None,
        description="the key of page tokens, at least 16 characters, the same in all replicas; not needed with tokens",
        examples=["(48 random hex digits)"],
    )
    reflection: bool = Field(
        default=False,
        description="the switch for gRPC reflection on the public port",
        examples=["false"],
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO",
        description="the least severe level that is logged",
        examples=["INFO"],
    )
    drain_seconds: float = Field(
        default=25.0,
        ge=0,
        le=3_600,
        description="the time calls and runs may take after SIGTERM, in seconds; keep it below the pod's grace period",
        examples=["25"],
    )
    max_concurrent_rpcs: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="the number of calls served at once on each port; more are refused",
        examples=["1000"],
    )

    @property
    def is_local(self) -> bool:
        """True where stand-ins for the cloud are allowed."""
        return self.environment == "local"

    @property
    def onboarding_open(self) -> bool:
        """True where a tenant may be onboarded without the admin key."""
        return self.onboarding == "open"

    def peers(self) -> Peers:
        """Returns the peers whose tokens lie in ``peers_dir``, read now; nobody is known without one.

        Raises ``SettingsInvalid`` if the directory or the process's own token is missing.
        """
        if self.peers_dir is None:
            return Peers()
        variable = variable_of(type(self), "peers_dir")
        if not self.peers_dir.is_dir():
            raise SettingsInvalid(
                f"{variable}: {self.peers_dir} is not a directory; it needs one `<peer>.token` per peer"
            )
        tokens = {
            path.name.removesuffix(_TOKEN_SUFFIX): path.read_text().strip()
            for path in sorted(self.peers_dir.glob("*" + _TOKEN_SUFFIX))
        }
        if bad := [name for name, token in tokens.items() if len(token) < 16]:
            raise SettingsInvalid(f"{variable}: token of {', '.join(bad)} is shorter than 16 characters")
        if self.service not in tokens:
            raise SettingsInvalid(
                f"{variable}: {self.peers_dir} has no {self.service}{_TOKEN_SUFFIX}, this process's own"
            )
        if len(set(tokens.values())) != len(tokens):
            raise SettingsInvalid(f"{variable}: two peers share one token; each needs its own")
        return Peers(tokens[self.service], tokens)

    def tls(self) -> Tls | None:
        """Returns what this process shows and trusts on the wire; ``None`` where tokens take its place.

        Raises ``SettingsInvalid`` if the files are not there, do not belong together or are another's.
        """
        files = (self.tls_certificate, self.tls_key, self.tls_authority)
        if not any(files):
            return None
        variables = [variable_of(type(self), name) for name in ("tls_certificate", "tls_key", "tls_authority")]
        certificate, key, authority = files
        if certificate is None or key is None or authority is None:
            raise SettingsInvalid(f"{', '.join(variables)} go together: set all of them or none")
        tls = Tls(certificate, key, authority, self.trust_domain)
        try:
            tls.check(self.service)
        except TlsInvalid as exc:
            raise SettingsInvalid(f"{variables[0]}: {exc}") from None
        return tls

    def page_secret(self) -> bytes:
        """Returns the key of page tokens: the same in all replicas, or a page would be good in one of them only.

        Raises ``SettingsInvalid`` where there is neither a key nor a peer token that it could follow from.
        """
        own = self.page_key.get_secret_value() if self.page_key else self.peers().own_token
        if not own and self.tls_certificate is not None:
            raise SettingsInvalid(_advice(type(self), "page_key", "is not set"))
        return hmac.digest(own.encode(), b"convergence page tokens", hashlib.sha256) if own else secrets.token_bytes(32)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Takes values from arguments only; ``load`` alone reads the environment."""
        return (init_settings,)

    @field_validator("google_application_credentials")
    @classmethod
    def _file_exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"names no file: {value}")
        return value

    @field_validator("admin_api_key", "page_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("is shorter than 16 characters")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"https?://[A-Za-z0-9.\-]+(:\d{1,5})?|\*", origin):
                raise ValueError(f"{origin!r} is not an origin (scheme://host[:port], no path)")
        return value

    @model_validator(mode="after")
    def _endpoints_are_local(self) -> ServiceSettings:
        if not self.is_local:
            for name in ("bigquery_endpoint", "bigquery_storage_endpoint", "kms_endpoint"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{variable_of(type(self), name)} stands in for the cloud and is accepted only with "
                        f"{_PREFIX}ENVIRONMENT=local (it is {self.environment!r}); unset it"
                    )
        return self


def load[S: ServiceSettings](
    settings_type: type[S], environ: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")
) -> S:
    """Returns the settings of ``environ`` (default: the process's), over those of the ``.env`` file if there is one.

    Raises ``SettingsInvalid``.
    """
    try:
        written = DotEnvSettingsSource(settings_type, env_file=env_file)()
        given = _Environment(settings_type, os.environ if environ is None else environ)()  # noqa: TID251  the one place
        return settings_type(**(written | given))
    except SettingsError as exc:
        raise SettingsInvalid(_unparsable(settings_type, exc)) from None
    except ValidationError as exc:
        raise SettingsInvalid("\n".join(dict.fromkeys(_lines(settings_type, exc)))) from None


def variable_of(settings_type: type[BaseSettings], field: str) -> str:
    """Returns the environment variable that fills a field."""
    alias = settings_type.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else _PREFIX + field.upper()


def write_peer_tokens(directory: Path, names: Iterable[str]) -> None:
    """Makes a random token file, readable by its owner only, for each peer that has none yet. Safe to repeat."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in names:
        try:
            file = os.open(directory / (name + _TOKEN_SUFFIX), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(file, "w") as out:
            out.write(secrets.token_urlsafe(32))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class _Environment(EnvSettingsSource):
    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return parse_env_vars(self._environ, self.case_sensitive, self.env_ignore_empty, self.env_parse_none_str)


def _unparsable(settings_type: type[BaseSettings], exc: SettingsError) -> str:
    found = re.search(r'field "(\w+)"', str(exc))
    if not found:
        return "the environment cannot be parsed"
    field = found.group(1)
    return _parse_error(settings_type, field)


def _lines(settings_type: type[BaseSettings], exc: ValidationError) -> Iterable[str]:
    fields = {variable_of(settings_type, name): name for name in settings_type.model_fields}
    for error in exc.errors(include_input=False, include_url=False, include_context=False):
        place = str(error["loc"][0]) if error["loc"] else ""
        field = place if place in settings_type.model_fields else fields.get(place)
        text = error["msg"].removeprefix("Value error, ")
        if field is None:
            yield text
        elif error["type"] in ("tuple_type", "list_type", "set_type"):
            yield _parse_error(settings_type, field)
        elif error["type"] == "missing":
            yield _advice(settings_type, field, "is not set")
        else:
            yield _advice(settings_type, field, text[:1].lower() + text[1:])


def _parse_error(settings_type: type[BaseSettings], field: str) -> str:
    return f'error parsing value for field "{field}": {_advice(settings_type, field, "must be a JSON array")}'


def _advice(settings_type: type[BaseSettings], field: str, problem: str) -> str:
    variable = variable_of(settings_type, field)
    info = settings_type.model_fields[field]
    example = f"; for example {variable}={info.examples[0]}" if info.examples else ""
    return f"{variable} {problem}. It is {info.description}{example}"
