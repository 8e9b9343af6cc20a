"""Asks each provider, cheaply and read-only, whether a secret works; behind ``domain.Validator``.

Only addresses that follow from checked ids are called, redirects are not followed, and nothing a provider writes
reaches an answer: a verdict's reason is a sentence of ours. INVALID is said only where the provider has definitely
refused; whatever else goes wrong is PENDING.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import boto3
import requests
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from google.api_core import exceptions as api
from google.auth import aws
from google.auth.exceptions import GoogleAuthError, RefreshError
from google.cloud.bigquery import Client, DatasetReference
from google.oauth2 import service_account

from libs.bigquery import build_client
from services.credential.domain import Validator
from services.credential.secret import Secret
from services.credential.states import Kind, Provider, Status, Verdict

_CONNECT_SECONDS: Final = 4.0
_ANSWER_SECONDS: Final = 8.0
_MAX_BODY: Final = 65_536
_ENTRA: Final = "https://login.microsoftonline.com"
_SCOPE: Final = "https://www.googleapis.com/auth/bigquery.readonly"
_STS_HOMES: Final = {"aws": "us-east-1", "aws-cn": "cn-north-1", "aws-us-gov": "us-gov-west-1"}
_PASSING_403: Final = frozenset({"rateLimitExceeded", "quotaExceeded", "backendError"})
_WORKS: Final = Verdict(Status.VALID)


def validators(*, bigquery_endpoint: str | None) -> Mapping[Provider, Validator]:
    """One validator per provider. ``bigquery_endpoint`` is the local stand-in that all GCP sources are read at."""
    # At DEBUG it writes whole query strings, and a shared access signature is one.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)
    # At DEBUG it writes what STS answers: the keys of the session.
    logging.getLogger("botocore").setLevel(logging.INFO)
    return {
        Provider.GCP: _Threaded("BigQuery", partial(_ask_bigquery, bigquery_endpoint)),
        Provider.AWS: _Threaded("AWS", _ask_aws),
        Provider.AZURE: _Threaded("Azure", _ask_azure),
    }


type _Ask = Callable[[Kind, Mapping[str, str], Mapping[str, str], str], Verdict]


class _Threaded:
    """Runs a blocking question in a thread. One that hangs is left to its own timeouts."""

    def __init__(self, provider: str, ask: _Ask) -> None:
        self._provider = provider
        self._ask = ask

    async def validate(self, kind: Kind, secret: Secret, source: Mapping[str, Any], external_id: str) -> Verdict:
        try:
            return await asyncio.to_thread(lambda: self._ask(kind, secret.fields(), source, external_id))
        except Exception:
            # Nothing of the failure is kept: texts of HTTP libraries hold addresses, and those may hold a signature.
            return Verdict(Status.PENDING, f"{self._provider} could not be asked; it will be asked again.")


def _ask_bigquery(
    endpoint: str | None, kind: Kind, fields: Mapping[str, str], source: Mapping[str, Any], _external_id: str
) -> Verdict:
    """Reads the metadata of what the source names, with the key signing its own tokens: no token address is called."""
    if kind is Kind.GRANTED_ACCESS:
        # Granted to the executor's account, not to ours.
        return Verdict(
            Status.PENDING,
            "What was granted is looked at by each run: give roles/bigquery.dataViewer on the dataset, its label "
            "convergence_tenant, and source.project_id and source.dataset_id.",
            asked=False,
        )
    own = service_account.Credentials if endpoint is None else _StandInCredentials
    credentials = own.from_service_account_info(  # type: ignore[no-untyped-call]
        dict(fields), scopes=[_SCOPE], always_use_jwt_access=True
    )
    project = source.get("project_id", fields["project_id"])
    client = build_client(project, endpoint=endpoint, credentials=credentials, pool=1)
    try:
        _look(client, project, source)
        return _WORKS
    except (api.Unauthorized, RefreshError):
        return Verdict(Status.INVALID, "Google does not accept the key: it is deleted, disabled or was never issued.")
    except api.Forbidden as refused:
        passing = {error.get("reason") for error in refused.errors} & _PASSING_403
        if passing or "dataset_id" not in source:
            return Verdict(Status.PENDING, "Google accepts the key, but it may not list the project's datasets.")
        return Verdict(
            Status.INVALID,
            "The service account may not read the source; grant it roles/bigquery.dataViewer there and "
            "roles/bigquery.jobUser and roles/bigquery.readSessionUser on its project.",
        )
    except api.NotFound:
        return Verdict(Status.PENDING, "Google accepts the key, but the source was not found.")
    except (api.GoogleAPICallError, GoogleAuthError, requests.RequestException):
        return Verdict(Status.PENDING, "BigQuery did not answer; it will be asked again.")
    finally:
        client.close()  # type: ignore[no-untyped-call]


class _StandInCredentials(service_account.Credentials):
    """A key that signs for a stand-in: nobody at Google is asked where it may be used."""

    def _is_regional_access_boundary_lookup_required(self) -> bool:
        return False


def _look(client: Client, project: str, source: Mapping[str, Any]) -> None:
    options: dict[str, Any] = {"retry": None, "timeout": _ANSWER_SECONDS}
    if "dataset_id" not in source:
        next(iter(client.list_datasets(max_results=1, **options)), None)
        return
    dataset = DatasetReference(project, source["dataset_id"])
    if "table_id" in source:
        client.get_table(dataset.table(source["table_id"]), **options)
    else:
        client.get_dataset(dataset, **options)


def _ask_aws(kind: Kind, fields: Mapping[str, str], source: Mapping[str, Any], external_id: str) -> Verdict:
    """Asks STS whose key it is, which needs no permission; of a role, for the shortest session it gives."""
    if kind is Kind.ROLE:
        return _assume(fields["role_arn"], source, external_id)
    region = _region(source) or "us-east-1"
    host = f"https://sts.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
    query = "/?Action=GetCallerIdentity&Version=2011-06-15"
    key = aws.AwsSecurityCredentials(fields["access_key_id"], fields["secret_access_key"], fields.get("session_token"))
    signed = aws.RequestSigner(region).get_request_options(key, host + query, "POST")  # type: ignore[no-untyped-call]
    status, _ = _http("POST", source.get("endpoint_url", host) + query, headers=signed["headers"])
    if status == requests.codes.ok:
        return _WORKS
    if status == requests.codes.forbidden:
        return Verdict(Status.INVALID, "AWS does not accept the key: it is deleted, inactive, expired or mistyped.")
    return Verdict(Status.PENDING, "AWS did not answer; it will be asked again.")


def _region(source: Mapping[str, Any]) -> str | None:
    region: str | None = source.get("region") or next(iter(source.get("regions", ())), None)
    return region


def _assume(role_arn: str, source: Mapping[str, Any], external_id: str) -> Verdict:
    """Assumes the role as the platform's own AWS identity, with the external id that we issued; drops the session."""
    stand_in = source.get("endpoint_url")
    # The platform's own identity is shown to AWS only.
    own = boto3.Session("stand-in", "stand-in") if stand_in else boto3.Session()
    sts = own.client(
        "sts",
        region_name=_region(source) or _STS_HOMES[role_arn.split(":")[1]],
        endpoint_url=stand_in,
        config=Config(
            connect_timeout=_CONNECT_SECONDS, read_timeout=_ANSWER_SECONDS, retries={"total_max_attempts": 1}
        ),
    )
    try:
        _session(sts, role_arn, external_id)
        # A stand-in judges no trust policy.
        return _WORKS if stand_in else _closed(sts, role_arn, external_id)
    except ClientError as refused:
        if _denied(refused):
            return Verdict(
                Status.INVALID,
                f"AWS does not let us assume the role: its trust policy must name us and external id {external_id}.",
            )
        return Verdict(Status.PENDING, "AWS did not answer; it will be asked again.")
    except BotoCoreError:
        return Verdict(Status.PENDING, "AWS could not be asked; it will be asked again.")
    finally:
        sts.close()


def _closed(sts: Any, role_arn: str, external_id: str) -> Verdict:
    """Whether the role asks for its external id; if not, any tenant who knows its name could have us assume it."""
    try:
        _session(sts, role_arn, uuid.uuid4().hex)
    except ClientError as refused:
        if _denied(refused):
            return _WORKS
        raise
    return Verdict(
        Status.INVALID,
        f"AWS lets us assume the role with any external id: its trust policy must require {external_id}.",
        final=True,
    )


def _session(sts: Any, role_arn: str, external_id: str) -> None:
    sts.assume_role(RoleArn=role_arn, RoleSessionName="convergence-check", ExternalId=external_id, DurationSeconds=900)


def _denied(refused: ClientError) -> bool:
    return bool(refused.response.get("Error", {}).get("Code") == "AccessDenied")


def _ask_azure(kind: Kind, fields: Mapping[str, str], source: Mapping[str, Any], _external_id: str) -> Verdict:
    return _ask_entra(fields) if kind is Kind.SERVICE_PRINCIPAL else _ask_storage(fields, source)


def _ask_entra(fields: Mapping[str, str]) -> Verdict:
    """Asks for a token at Microsoft's own authority and drops it."""
    status, body = _http(
        "POST",
        f"{_ENTRA}/{fields['azure_tenant_id']}/oauth2/v2.0/token",
        data={
            "grant_type": "client_credentials",
            "client_id": fields["client_id"],
            "client_secret": fields["client_secret"],
            "scope": "https://storage.azure.com/.default",
        },
    )
    if status == requests.codes.ok:
        return _WORKS
    refusals = ("invalid_client", "unauthorized_client", "invalid_request", "invalid_grant")
    if status in (requests.codes.bad_request, requests.codes.unauthorized) and any(
        f'"{word}"'.encode() in body for word in refusals
    ):
        return Verdict(Status.INVALID, "Microsoft Entra refuses the service principal: check directory, id and secret.")
    return Verdict(Status.PENDING, "Microsoft Entra did not answer; it will be asked again.")


def _ask_storage(fields: Mapping[str, str], source: Mapping[str, Any]) -> Verdict:
    """Lists one blob of the container with the signature."""
    if "container" not in source or not {"storage_account", "endpoint_url"} & source.keys():
        return Verdict(
            Status.PENDING, "Give source.storage_account and source.container to have it checked.", asked=False
        )
    host = source.get("endpoint_url") or f"https://{source['storage_account']}.blob.core.windows.net"
    query = f"restype=container&comp=list&maxresults=1&{fields['sas_token']}"
    status, _ = _http("GET", f"{host}/{source['container']}?{query}")
    if status == requests.codes.ok:
        return _WORKS
    if status in (requests.codes.unauthorized, requests.codes.forbidden):
        return Verdict(Status.INVALID, "Azure storage refuses the signature: it is expired, mistyped or may not list.")
    if status == requests.codes.not_found:
        return Verdict(Status.PENDING, "Azure storage has no such container.")
    return Verdict(Status.PENDING, "Azure storage did not answer; it will be asked again.")


def _http(method: str, url: str, **options: Any) -> tuple[int, bytes]:
    """One request: no redirects, bounded in time, its body cut."""
    with requests.request(
        method, url, timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS), allow_redirects=False, stream=True, **options
    ) as answer:
        return answer.status_code, next(answer.iter_content(_MAX_BODY), b"")
