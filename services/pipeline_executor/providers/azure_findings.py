"""Reads what Azure finds: Azure Policy's newest states, and Defender for Cloud's assessments.

Both are asked of Azure Resource Manager with a service principal, whose tokens come from Microsoft's own authority. One
run reads every subscription of the source, one after another, and all of them or none: one that may not be read ends
the run, since findings that are not read would look like findings that are gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final
from urllib.parse import urlsplit

from azure.core import exceptions as azure
from azure.core.pipeline import policies
from azure.identity import ClientSecretCredential
from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy
from azure.mgmt.policyinsights import PolicyInsightsClient
from azure.mgmt.security.v2021_06_01 import SecurityCenter
from pydantic import Field, StringConstraints

from libs import errors, logs
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest
from services.pipeline_executor.providers.paging import CursorRefusedError, Listing, Page, Record, read
from services.pipeline_executor.providers.source import SourceModel, refuse_stand_in
from services.pipeline_executor.providers.source import read as read_source
from services.pipeline_executor.run_context import Secret

_AUTHORITY: Final = "https://login.microsoftonline.com"
_MANAGER: Final = "https://management.azure.com"
_GUID: Final = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_CONNECT_SECONDS: Final = 15
_LOG = logs.get(__name__)
_READ_SECONDS: Final = 60

type _Id = Annotated[str, StringConstraints(pattern=f"^{_GUID}$")]


class Source(SourceModel):
    """Which subscriptions are read. ``endpoint_url`` is of a stand-in, for Entra and for Resource Manager."""

    subscription_ids: list[_Id] = Field(min_length=1, max_length=500)
    endpoint_url: str | None = Field(default=None, pattern=r"^https?://[\x21-\x7e]{1,500}$")

    @property
    def every(self) -> Sequence[str]:
        """The subscriptions, each once."""
        return tuple(dict.fromkeys(name.lower() for name in self.subscription_ids))


class PolicyExtractor:
    """Extracts ``policy_states``: how each resource stands to each policy assigned to it, compliant ones too."""

    source: ClassVar[type[SourceModel]] = Source
    resumes: ClassVar[bool] = True

    async def extract(self, request: ExtractRequest, secret: Secret) -> Extraction:
        """Reads every page of every subscription."""
        return await _read(request, secret, _Policy)


class DefenderExtractor:
    """Extracts ``defender_assessments``: each assessment of each resource, with what Defender says of its kind."""

    source: ClassVar[type[SourceModel]] = Source
    resumes: ClassVar[bool] = True

    async def extract(self, request: ExtractRequest, secret: Secret) -> Extraction:
        """Reads every page of every subscription."""
        return await _read(request, secret, _Defender)


async def _read(request: ExtractRequest, secret: Secret, kind: Callable[[_Access], Any]) -> Extraction:
    source = read_source(Source, request.source)
    refuse_stand_in(source.endpoint_url, request.endpoints)
    return await read(Listing(scopes=source.every, connect=lambda: kind(_Access(secret, source))), request)


# ------------------------------------------------------------------------------------------------- access


class _Access:
    """One sign-in of the principal, and the clients that use its tokens."""

    def __init__(self, secret: Secret, source: Source) -> None:
        key = secret.reveal()
        names = ("azure_tenant_id", "client_id", "client_secret")
        if not all(isinstance(key.get(name), str) for name in names) or not re.fullmatch(_GUID, key["azure_tenant_id"]):
            raise errors.FailedPrecondition(
                "CREDENTIAL_UNUSABLE",
                "The stored Azure credential is no service principal's secret: a shared access signature reads "
                "storage only.",
            )
        self._manager = source.endpoint_url or _MANAGER
        self._credential = ClientSecretCredential(
            *(key[name] for name in names),
            authority=source.endpoint_url or _AUTHORITY,
            disable_instance_discovery=True,
            retry_total=0,
            connection_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
        )
        self._options: Mapping[str, Any] = {
            "base_url": self._manager,
            # Not the usual ones: those try again, which knows nothing of a run that was cancelled, follow redirects,
            # and register a resource provider in the customer's subscription where one is missing.
            "policies": [
                policies.UserAgentPolicy(sdk_moniker="convergence"),
                policies.ContentDecodePolicy(),
                ARMChallengeAuthenticationPolicy(self._credential, f"{_MANAGER}/.default"),
                policies.CustomHookPolicy(),
            ],
            "connection_timeout": _CONNECT_SECONDS,
            "read_timeout": _READ_SECONDS,
        }
        self._clients: dict[str, Any] = {}

    def close(self) -> None:
        """Closes all connections."""
        for client in list(self._clients.values()):
            client.close()
        self._credential.close()

    def client[C](self, kind: Callable[..., C], subscription: str) -> C:
        """A client for one subscription."""
        if subscription not in self._clients:
            self._clients[subscription] = kind(self._credential, subscription, **self._options)
        found: C = self._clients[subscription]
        return found

    def page(self, listing: Callable[..., Any], *arguments: str, cursor: str | None, where: str) -> _Answer:
        """Asks for one page, and returns its JSON as Azure wrote it: the models drop what they do not know."""
        kept: list[str] = []
        failure: errors.Error
        if cursor is not None:
            self._check(cursor)
        try:
            pages = listing(
                *arguments, raw_response_hook=lambda answer: kept.append(answer.http_response.text())
            ).by_page(continuation_token=cursor)
            next(pages)
            return _Answer(json.loads(kept[-1])["value"], pages.continuation_token or None)
        except azure.ClientAuthenticationError as exc:
            failure = _refused(exc)
        except azure.HttpResponseError as exc:
            if cursor is not None and exc.status_code in (400, 404, 410):
                raise CursorRefusedError from None
            failure = _failure(exc, where)
        except (azure.AzureError, ValueError, KeyError):
            failure = _unavailable()
        raise failure

    def _check(self, cursor: str) -> None:
        """Tokens go to Resource Manager only, wherever an answer says that its next page is."""
        ours, given = urlsplit(self._manager), urlsplit(cursor)
        if (given.scheme, given.hostname, given.port or 443) != (ours.scheme, ours.hostname, ours.port or 443):
            raise errors.FailedPrecondition("SOURCE_REFUSED", "Azure named another host for its next page.")


class _Answer:
    """One page: its items, and the link to the next one."""

    def __init__(self, items: Sequence[Mapping[str, Any]], following: str | None) -> None:
        self.items = items
        self.following = following


def _refused(exc: azure.ClientAuthenticationError) -> errors.Error:
    status = getattr(exc.response, "status_code", None) or 401
    if status == 429 or status >= 500:
        return _unavailable()
    return errors.FailedPrecondition(
        "CREDENTIAL_REJECTED",
        "Microsoft Entra or Azure refuses the stored service principal: its secret is expired, revoked or mistyped. "
        "Store a new one.",
    )


def _failure(exc: azure.HttpResponseError, where: str) -> errors.Error:
    status = exc.status_code or 0
    _LOG.info("source_failed", source="azure", status=status, code=str(getattr(exc.error, "code", ""))[:64])
    if status == 429:
        after = str(getattr(exc.response, "headers", {}).get("Retry-After", ""))
        return errors.Unavailable(
            "SOURCE_THROTTLED",
            "Azure takes no more requests at this time; try again later.",
            retry_after=timedelta(seconds=int(after)) if re.fullmatch(r"[0-9]{1,6}", after) else None,
        )
    if status == 403:
        return errors.FailedPrecondition(
            "SOURCE_ACCESS_DENIED",
            f"The stored service principal may not read subscription {where}: give it the role Reader there for "
            "policies, Security Reader for Defender for Cloud.",
        )
    if status == 404:
        return errors.FailedPrecondition("SOURCE_NOT_FOUND", f"There is no subscription {where}.")
    if status in (0, 408) or status >= 500:
        return _unavailable()
    return errors.FailedPrecondition("SOURCE_REFUSED", f"Azure refused to list what it found in subscription {where}.")


def _unavailable() -> errors.Unavailable:
    return errors.Unavailable("SOURCE_UNAVAILABLE", "Azure did not answer; try again.")


# ------------------------------------------------------------------------------------------------- policy


class _Policy:
    """The newest state of each resource under each assignment and definition."""

    def __init__(self, access: _Access) -> None:
        self._access = access

    def close(self) -> None:
        self._access.close()

    def page(self, scope: str, cursor: str | None) -> Page:
        states = self._access.client(PolicyInsightsClient, scope).policy_states
        answer = self._access.page(
            states.list_query_results_for_subscription, "latest", scope, cursor=cursor, where=scope
        )
        records = [Record(item.get("complianceState"), item, (scope, "")) for item in answer.items]
        return Page(records, answer.following, [(scope, "")])


# ------------------------------------------------------------------------------------------------- Defender


class _Defender:
    """A subscription's assessments. A record is ``{"assessment": …, "metadata": …}``, each as Azure wrote it.

    What is said of a kind of assessment (severity, description) is listed apart; it is read once for a subscription.
    """

    def __init__(self, access: _Access) -> None:
        self._access = access
        self._kinds: tuple[str, Mapping[str, Any]] | None = None

    def close(self) -> None:
        self._access.close()

    def page(self, scope: str, cursor: str | None) -> Page:
        if self._kinds is None or self._kinds[0] != scope:
            self._kinds = scope, {str(item["name"]).lower(): item for item in self._metadata(scope)}
        kinds = self._kinds[1]
        listing = self._access.client(SecurityCenter, scope).assessments.list
        answer = self._access.page(listing, f"subscriptions/{scope}", cursor=cursor, where=scope)
        records = [
            Record(
                (item.get("properties", {}).get("status") or {}).get("code"),
                {"assessment": item, "metadata": kinds.get(str(item.get("name")).lower())},
                (scope, ""),
            )
            for item in answer.items
        ]
        return Page(records, answer.following, [(scope, "")])

    def _metadata(self, scope: str) -> Iterator[Mapping[str, Any]]:
        listing = self._access.client(SecurityCenter, scope).assessments_metadata.list_by_subscription
        cursor: str | None = None
        while True:
            answer = self._access.page(listing, cursor=cursor, where=scope)
            yield from answer.items
            cursor = answer.following
            if cursor is None:
                return
