"""What a credential and a source may look like on the wire, per provider: strict, and silent about what it was given.

The servicer calls ``parse_credentials`` and ``parse_source``. Every fault is named by field and by what a good value
looks like, never by the value. Nothing a caller writes here can send the platform's requests to a host of its
choice: Google's token and key addresses are pinned, Azure's authority and AWS's hosts follow from checked ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl, urlsplit

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from libs import errors
from services.credential.secret import Secret
from services.credential.states import Draft, Kind, Provider

GOOGLE_TOKEN_URI: Final = "https://oauth2.googleapis.com/token"
_GOOGLE_CERTS: Final = "https://www.googleapis.com/oauth2/v1/certs"
_GOOGLE_X509: Final = "https://www.googleapis.com/robot/v1/metadata/x509/"
_SESSION_LIFE: Final = timedelta(hours=36)
_MIN_RSA_BITS: Final = 1024
_MAX_FAULTS: Final = 20
_NAMEABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}", re.ASCII)
_GUID: Final = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
_SAS_FIELDS: Final = frozenset(
    {"sv", "ss", "srt", "sp", "st", "se", "spr", "sig", "sr", "si", "sip", "sdd", "ses", "tn"}
    | {"skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid", "scid"}
)


def _text(pattern: str, most: int = 256) -> Any:
    return StringConstraints(strict=True, min_length=1, max_length=most, pattern=pattern)


_Printable = Annotated[str, _text(r"^[\x20-\x7e]+$", 1024)]


def _rsa_key(pem: str) -> str:
    try:
        key = load_pem_private_key(pem.encode("ascii"), password=None)
    except Exception:
        key = None
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < _MIN_RSA_BITS:
        raise ValueError
    return pem


def _sas(token: str) -> str:
    token = token.removeprefix("?")
    fields = parse_qsl(token, keep_blank_values=True, strict_parsing=True, max_num_fields=40)
    by_name = dict(fields)
    if len(by_name) != len(fields) or not by_name.keys() <= _SAS_FIELDS or not by_name.keys() >= {"sig", "sv"}:
        raise ValueError
    if "si" not in by_name and not ({"r", "l"} <= set(by_name.get("sp", "")) and "se" in by_name):
        raise ValueError
    _sas_end(token)
    return token


def _sas_end(token: str) -> datetime | None:
    ends = [value for name, value in parse_qsl(token) if name == "se"]
    if not ends:
        return None
    end = datetime.fromisoformat(ends[0])
    return end if end.tzinfo else end.replace(tzinfo=UTC)


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
    ):
        raise ValueError
    _ = parts.port
    return url


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class _ServiceAccount(_Strict):
    """A Google service-account key as the console downloads it."""

    type: Literal["service_account"] = Field(description="the text service_account")
    project_id: Annotated[str, _text(r"^([a-z0-9.\-]{1,100}:)?[a-z][a-z0-9\-]{2,61}[a-z0-9]$")] = Field(
        description="the id of the key's project"
    )
    private_key_id: Annotated[str, _text(r"^[A-Za-z0-9_\-]+$", 128)] = Field(description="the id of the key")
    private_key: Annotated[str, _text(r"^[\x20-\x7e\r\n]+$", 16_384), AfterValidator(_rsa_key)] = Field(
        description="an unencrypted RSA private key in PEM"
    )
    client_email: Annotated[str, _text(r"^[A-Za-z0-9._%+\-]+@[A-Za-z0-9.\-]+$")] = Field(
        description="the service account's e-mail address"
    )
    token_uri: Literal["https://oauth2.googleapis.com/token", "https://accounts.google.com/o/oauth2/token"] = Field(
        description=GOOGLE_TOKEN_URI
    )
    client_id: Annotated[str, _text(r"^[0-9]*$", 64)] | None = Field(None, description="the account's number")
    auth_uri: (
        Literal["https://accounts.google.com/o/oauth2/auth", "https://accounts.google.com/o/oauth2/v2/auth"] | None
    ) = Field(None, description="https://accounts.google.com/o/oauth2/auth")
    auth_provider_x509_cert_url: Literal["https://www.googleapis.com/oauth2/v1/certs"] | None = Field(
        None, description=_GOOGLE_CERTS
    )
    client_x509_cert_url: Annotated[str, _text(rf"^{re.escape(_GOOGLE_X509)}[A-Za-z0-9._%+@\-]+$", 512)] | None = Field(
        None, description=f"an address under {_GOOGLE_X509}"
    )
    universe_domain: Literal["googleapis.com"] | None = Field(None, description="googleapis.com")

    def draft(self, now: datetime) -> Draft:
        kept = self.model_dump(exclude_none=True) | {"token_uri": GOOGLE_TOKEN_URI}
        return Draft(Provider.GCP, Kind.SERVICE_ACCOUNT, Secret.of(kept), self.client_email)


class _GrantedAccess(_Strict):
    """No secret: the customer lets the platform's own Google account read its dataset, and labels that as its own."""

    type: Literal["granted_access"] = Field(description="the text granted_access")

    def draft(self, now: datetime) -> Draft:
        return Draft(Provider.GCP, Kind.GRANTED_ACCESS, Secret.of(self.model_dump()), "granted access")


class _AccessKey(_Strict):
    """An AWS access key, for good or for a session."""

    access_key_id: Annotated[str, _text(r"^[A-Z0-9]{16,128}$")] = Field(description="16 or more of A-Z and 0-9")
    secret_access_key: Annotated[str, _text(r"^[A-Za-z0-9/+=]{40}$")] = Field(description="40 characters")
    session_token: Annotated[str, _text(r"^[A-Za-z0-9/+=_\-]+$", 4096)] | None = Field(
        None, description="the token of a session, with its temporary key (ASIA…)"
    )

    @model_validator(mode="after")
    def _temporary_keys_have_sessions(self) -> _AccessKey:
        if self.access_key_id.startswith("ASIA") and self.session_token is None:
            raise ValueError("session_token")
        return self

    def draft(self, now: datetime) -> Draft:
        # No session of AWS lives longer, and the token does not say how long it does.
        end = now + _SESSION_LIFE if self.session_token else None
        secret = Secret.of(self.model_dump(exclude_none=True))
        return Draft(Provider.AWS, Kind.ACCESS_KEY, secret, f"…{self.access_key_id[-4:]}", end)


class _Role(_Strict):
    """An AWS role that trusts the platform, given the external id that the platform issues."""

    role_arn: Annotated[str, _text(r"^arn:aws(-cn|-us-gov)?:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/\-]{1,512}$", 640)] = (
        Field(description="arn:aws:iam::<12 digits>:role/<name>")
    )

    def draft(self, now: datetime) -> Draft:
        return Draft(Provider.AWS, Kind.ROLE, Secret.of(self.model_dump()), self.role_arn)


class _ServicePrincipal(_Strict):
    """An Azure application's secret."""

    client_id: Annotated[str, _text(_GUID)] = Field(description="the application's id, a GUID")
    client_secret: Annotated[str, _text(r"^[\x21-\x7e]{8,256}$")] = Field(description="8 to 256 printable characters")
    azure_tenant_id: Annotated[str, _text(_GUID)] = Field(description="the directory's id, a GUID")

    def draft(self, now: datetime) -> Draft:
        return Draft(Provider.AZURE, Kind.SERVICE_PRINCIPAL, Secret.of(self.model_dump()), self.client_id.lower())


class _Sas(_Strict):
    """An Azure shared access signature."""

    sas_token: Annotated[str, _text(r"^[\x21-\x7e]+$", 4096), AfterValidator(_sas)] = Field(
        description="the query string of a shared access signature (sv=…&se=…&sp=rl…&sig=…), with read and list"
    )

    def draft(self, now: datetime) -> Draft:
        end = _sas_end(self.sas_token)
        if end is not None and end <= now:
            raise _fault("credentials", {"sas_token": "has expired already"})
        return Draft(Provider.AZURE, Kind.SAS, Secret.of(self.model_dump()), "shared access signature", end)


class _GcpSource(_Strict):
    """Of all data sets: a billing export's table, what Security Command Center finds under, and Prowler's outputs."""

    project_id: Annotated[str, _text(r"^([a-z0-9.\-]{1,100}:)?[a-z][a-z0-9\-]{2,61}[a-z0-9]$")] | None = Field(
        None, description="the id of the project that holds the billing export"
    )
    dataset_id: Annotated[str, _text(r"^[A-Za-z0-9_]+$", 1024)] | None = Field(None, description="the dataset's name")
    table_id: Annotated[str, _text(r"^[A-Za-z0-9_\-]+$", 1024)] | None = Field(None, description="the table's name")
    location: Annotated[str, _text(r"^[A-Za-z0-9\-]{2,40}$")] | None = Field(
        None, description="such as US or europe-west1"
    )
    parent: Annotated[str, _text(r"^((organizations|folders)/[0-9]{1,20}|projects/[a-z0-9.:\-]{1,100})$")] | None = (
        Field(None, description="organizations/<number>, folders/<number> or projects/<id>")
    )
    bucket: Annotated[str, _text(r"^[a-z0-9][a-z0-9._\-]{1,220}[a-z0-9]$")] | None = Field(
        None, description="a bucket's name"
    )
    prowler_prefix: _Printable | None = Field(None, description="the folder of Prowler's outputs")

    @model_validator(mode="after")
    def _a_table_is_in_a_dataset(self) -> _GcpSource:
        if self.table_id is not None and self.dataset_id is None:
            raise ValueError("dataset_id")
        return self


_Region = Annotated[str, _text(r"^[a-z]{2}(-[a-z]{2,12}){1,3}-[0-9]{1,2}$")]


class _AwsSource(_Strict):
    """Of all data sets: exports in a bucket, and the regions whose findings are read."""

    bucket: Annotated[str, _text(r"^[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]$")] | None = Field(
        None, description="a bucket's name"
    )
    prefix: _Printable | None = Field(None, description="the key prefix of the exports")
    export_name: Annotated[str, _text(r"^[A-Za-z0-9!_.*'()\-]{1,128}$")] | None = Field(
        None, description="the export's name"
    )
    region: _Region | None = Field(None, description="such as eu-west-1")
    regions: Annotated[list[_Region], Field(min_length=1, max_length=50)] | None = Field(
        None, description="a list of regions, such as eu-west-1"
    )
    prowler_prefix: _Printable | None = Field(None, description="the folder of Prowler's outputs")


class _AzureSource(_Strict):
    """Of all data sets: exports in a container, and the subscriptions whose findings are read."""

    storage_account: Annotated[str, _text(r"^[a-z0-9]{3,24}$")] | None = Field(
        None, description="a storage account's name"
    )
    container: Annotated[str, _text(r"^(\$root|[a-z0-9](-?[a-z0-9]){2,62})$")] | None = Field(
        None, description="a container's name"
    )
    directory: _Printable | None = Field(None, description="the directory of the exports")
    export_name: Annotated[str, _text(r"^[A-Za-z0-9_\-]{1,128}$")] | None = Field(None, description="the export's name")
    subscription_ids: Annotated[list[Annotated[str, _text(_GUID)]], Field(min_length=1, max_length=500)] | None = Field(
        None, description="a list of ids of subscriptions, each a GUID"
    )
    prowler_prefix: _Printable | None = Field(None, description="the folder of Prowler's outputs")


_Url = Annotated[str, _text(r"^[\x21-\x7e]+$", 512), AfterValidator(_endpoint)]


class _LocalGcpSource(_GcpSource):
    endpoint_url: _Url | None = Field(None, description="http://host:port of a stand-in of Security Command Center")


class _LocalAwsSource(_AwsSource):
    endpoint_url: _Url | None = Field(None, description="http://host:port of a stand-in of AWS")


class _LocalAzureSource(_AzureSource):
    endpoint_url: _Url | None = Field(None, description="http://host:port of a stand-in of Azure")


_SOURCES: Final[dict[Provider, tuple[type[_Strict], type[_Strict]]]] = {
    Provider.GCP: (_GcpSource, _LocalGcpSource),
    Provider.AWS: (_AwsSource, _LocalAwsSource),
    Provider.AZURE: (_AzureSource, _LocalAzureSource),
}


def parse_credentials(provider: Provider, given: Mapping[str, Any], now: datetime) -> Draft:
    """The secret and what may be known of it. Raises ``InvalidArgument(CREDENTIALS_INVALID)``, each bad field named."""
    draft: Draft = _parse(_form(provider, given), given, "credentials").draft(now)
    return draft


def parse_source(provider: Provider, given: Mapping[str, Any], *, stand_ins: bool) -> dict[str, Any]:
    """Where the data lie. ``stand_ins`` allows ``endpoint_url``. Raises ``InvalidArgument(SOURCE_INVALID)``."""
    parsed = _parse(_SOURCES[provider][stand_ins], given, "source")
    return parsed.model_dump(exclude_none=True)


def _form(provider: Provider, given: Mapping[str, Any]) -> Any:
    match provider:
        case Provider.GCP:
            return _GrantedAccess if given.get("type") == "granted_access" else _ServiceAccount
        case Provider.AWS:
            return _Role if "role_arn" in given else _AccessKey
        case Provider.AZURE:
            return _Sas if "sas_token" in given else _ServicePrincipal


def _parse[M: _Strict](form: type[M], given: Mapping[str, Any], where: str) -> M:
    faults: dict[str, str] = {}
    try:
        return form.model_validate(dict(given))
    except ValidationError as invalid:
        for error in invalid.errors(include_input=False, include_url=False, include_context=False):
            name, fault = _describe(form, error["type"], error["loc"], error["msg"])
            faults.setdefault(name, fault)
    # Outside of the except block: the ValidationError holds the input, and nothing may chain to it.
    raise _fault(where, faults)


def _describe(form: type[_Strict], kind: str, loc: tuple[int | str, ...], message: str) -> tuple[str, str]:
    name = str(loc[0]) if loc else message.removeprefix("Value error, ")
    field = form.model_fields.get(name)
    if field is None:
        shown = name if _NAMEABLE.fullmatch(name) else "(a name not shown)"
        return shown, "is issued by us and not given" if name == "external_id" else "is unknown"
    if kind == "missing" or not loc:
        return name, f"is missing: {field.description}"
    return name, f"must be {field.description}"


def _fault(where: str, faults: Mapping[str, str]) -> errors.InvalidArgument:
    first = dict(list(faults.items())[:_MAX_FAULTS])
    text = "; ".join(f"{where}.{name} {fault}" for name, fault in first.items())
    return errors.InvalidArgument(
        f"{where.upper()}_INVALID",
        f"{text}.",
        field_violations=[errors.FieldViolation(f"{where}.{name}", fault) for name, fault in first.items()],
    )
