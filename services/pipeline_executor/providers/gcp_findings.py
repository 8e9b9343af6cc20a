"""Reads what Google Cloud finds: Security Command Center's findings under an organisation, a folder or a project."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import grpc
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.securitycenter_v2 import ListFindingsRequest, SecurityCenterClient
from google.cloud.securitycenter_v2.services.security_center.transports import SecurityCenterGrpcTransport
from google.protobuf import json_format
from google.rpc import error_details_pb2
from pydantic import Field

from libs import errors, logs
from services.pipeline_executor.providers import gcp_access
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest
from services.pipeline_executor.providers.paging import CursorRefusedError, Listing, Page, Record, read
from services.pipeline_executor.providers.source import SourceModel, refuse_stand_in
from services.pipeline_executor.providers.source import read as read_source
from services.pipeline_executor.run_context import Secret, SourceEndpoints

_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
_PAGE: Final = 1000
_LOG = logs.get(__name__)
_SECONDS: Final = 60.0
_LARGEST: Final = 64 * 2**20


class Source(SourceModel):
    """Under what findings are read. ``endpoint_url`` is of a stand-in that speaks gRPC."""

    parent: str = Field(
        pattern=r"^(?:organizations/[0-9]{1,20}|folders/[0-9]{1,20}|projects/(?:[0-9]{1,20}|[a-z][a-z0-9.:\-]{4,80}))$"
    )
    endpoint_url: str | None = Field(default=None, pattern=r"^http://[\x21-\x7e]{1,500}$")


class FindingsExtractor:
    """Extracts ``scc_findings``: misconfigurations, active or not, of every source.

    Parameters: ``location``, where the organisation keeps its findings.
    """

    source: ClassVar[type[SourceModel]] = Source
    resumes: ClassVar[bool] = True

    async def extract(self, request: ExtractRequest, secret: Secret) -> Extraction:
        """Reads every page."""
        source = read_source(Source, request.source)
        refuse_stand_in(source.endpoint_url, request.endpoints)
        if not re.fullmatch(r"[a-z][a-z0-9-]{1,40}", request.parameters["location"], re.ASCII):
            raise errors.FailedPrecondition("SOURCE_INVALID", "parameters.location must be global, or such as eu.")

        def connect() -> _Findings:
            return _Findings(source, secret, request.parameters, request.endpoints)

        return await read(Listing(scopes=(source.parent,), connect=connect), request)


class _Findings:
    """ListFindings in the order of their names. A record is one result in the API's JSON: finding and resource."""

    def __init__(
        self, source: Source, secret: Secret, parameters: Mapping[str, Any], endpoints: SourceEndpoints
    ) -> None:
        local = endpoints.bigquery is not None
        credentials, _ = gcp_access.credentials(secret, _SCOPES, local=local)
        self._location = parameters["location"]
        self._metadata: Sequence[tuple[str, str]] = ()
        if source.endpoint_url is None:
            self._client = SecurityCenterClient(credentials=credentials)
        else:
            address = urlsplit(source.endpoint_url).netloc
            channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", _LARGEST)])
            self._client = SecurityCenterClient(transport=SecurityCenterGrpcTransport(channel=channel))
            self._metadata = gcp_access.headers(credentials, source.endpoint_url)

    def close(self) -> None:
        self._client.transport.close()  # type: ignore[no-untyped-call]

    def page(self, scope: str, cursor: str | None) -> Page:
        request = ListFindingsRequest(
            parent=f"{scope}/sources/-/locations/{self._location}",
            filter='findingClass="MISCONFIGURATION"',
            order_by="name",
            page_size=_PAGE,
            page_token=cursor or "",
        )
        failure: errors.Error
        try:
            # Without its own retries, which would know nothing of a run that was cancelled.
            pager = self._client.list_findings(request, retry=None, timeout=_SECONDS, metadata=self._metadata)
            answer = next(iter(pager.pages))
        except api.InvalidArgument as exc:
            if cursor is not None:
                raise CursorRefusedError from None
            failure = _failure(exc, scope)
        except (api.GoogleAPICallError, auth.GoogleAuthError, ValueError) as exc:
            failure = _failure(exc, scope)
        else:
            texts = [json_format.MessageToDict(item._pb) for item in answer.list_findings_results]
            records = [Record(_state(body), body, (_account(body), "")) for body in texts]
            return Page(records, answer.next_page_token or None)
        raise failure


def _state(body: Mapping[str, Any]) -> str | None:
    state: str | None = body.get("finding", {}).get("state")
    return state


def _account(body: Mapping[str, Any]) -> str:
    """The project, folder or organisation that the resource is nearest to: what ``scc.sql`` calls its account."""
    name = str(body.get("finding", {}).get("canonicalName", ""))
    return ([*name.split("/"), ""])[1]


def _failure(exc: Exception, parent: str) -> errors.Error:
    _LOG.info("source_failed", source="scc", kind=type(exc).__name__)
    match exc:
        case auth.TransportError():
            return _unavailable()
        case auth.GoogleAuthError() | api.Unauthorized():
            return errors.FailedPrecondition(
                "CREDENTIAL_REJECTED",
                "Google refused the stored key: it was deleted, disabled or expired. Store a new one.",
            )
        case api.TooManyRequests():
            return errors.Unavailable(
                "SOURCE_THROTTLED",
                "Security Command Center takes no more requests at this time; try again later.",
                retry_after=_retry_after(exc),
            )
        case api.Forbidden():
            return errors.FailedPrecondition(
                "SOURCE_ACCESS_DENIED",
                f"The stored key may not read the findings of {parent}: grant its service account "
                "roles/securitycenter.findingsViewer there, and enable securitycenter.googleapis.com in its project.",
            )
        case api.NotFound():
            return errors.FailedPrecondition(
                "SOURCE_NOT_FOUND", f"There is no {parent}, or Security Command Center is not active there."
            )
        case api.ClientError() if not isinstance(exc, api.Cancelled | api.Aborted):
            return errors.FailedPrecondition(
                "SOURCE_REFUSED", f"Security Command Center refused to list the findings of {parent}."
            )
    return _unavailable()


def _unavailable() -> errors.Unavailable:
    return errors.Unavailable("SOURCE_UNAVAILABLE", "Security Command Center did not answer; try again.")


def _retry_after(exc: api.GoogleAPICallError) -> timedelta | None:
    for detail in exc.details:
        if isinstance(detail, error_details_pb2.RetryInfo):
            return detail.retry_delay.ToTimedelta()
    return None
