"""Reads what AWS finds: Security Hub's findings, and what AWS Config's rules make of each resource.

One run reads every region of the source, one after another, and all of them or none: a region that may not be read
ends the run, since findings that are not read would look like findings that are gone.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final

import botocore.exceptions
from pydantic import Field, StringConstraints, model_validator

from libs import errors, logs
from services.pipeline_executor.providers import aws_access
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest
from services.pipeline_executor.providers.paging import CursorRefusedError, Listing, Page, Record, read
from services.pipeline_executor.providers.source import SourceModel, refuse_stand_in, required
from services.pipeline_executor.providers.source import read as read_source
from services.pipeline_executor.run_context import Secret

_REGION: Final = r"^[a-z]{2}(-[a-z]{2,12}){1,3}-[0-9]{1,2}$"
_PAGE: Final = 100
_RULES: Final = 25
# Findings without any of them are no findings of compliance.
_STATUSES: Final = ("PASSED", "FAILED", "WARNING", "NOT_AVAILABLE")
# GetFindings allows three requests a second.
_PACE: Final = timedelta(seconds=0.34)

_LOG = logs.get(__name__)
_REJECTED = (
    "ExpiredToken|InvalidClientTokenId|UnrecognizedClient|SignatureDoesNotMatch|InvalidSignature|IncompleteSignature"
    "|MissingAuthenticationToken|AuthFailure|InvalidAccessKeyId|NotAuthorizedForSession"
)
_DENIED = "AccessDenied|UnauthorizedOperation|NotAuthorized"
_ABSENT = "InvalidAccess|NoSuchConfigurationRecorder|NoAvailableConfigurationRecorder|SubscriptionRequired"
_BUSY = aws_access.THROTTLED + "|LimitExceeded|RequestThrottled|ProvisionedThroughputExceeded|PriorRequestNotComplete"
_FAILING = "^Internal|ServiceUnavailable|ServiceFailure|RequestTimeout|^50[0-9]"
_CURSOR = "InvalidNextToken|InvalidInput|ValidationException|InvalidPaginationToken"

type _Region = Annotated[str, StringConstraints(pattern=_REGION)]


class Source(SourceModel):
    """Which regions are read; ``region`` alone serves where there is one. ``endpoint_url`` is of a stand-in."""

    regions: list[Annotated[str, StringConstraints(pattern=_REGION)]] | None = Field(
        default=None, min_length=1, max_length=50
    )
    region: str | None = Field(default=None, pattern=_REGION)
    endpoint_url: str | None = Field(default=None, pattern=r"^https?://[\x21-\x7e]{1,500}$")

    @model_validator(mode="after")
    def _has_a_region(self) -> Source:
        if not self.regions and not self.region:
            raise required("regions")
        return self

    @property
    def every(self) -> Sequence[str]:
        """The regions, each once."""
        return tuple(dict.fromkeys(self.regions or [self.region or ""]))


class SecurityHubExtractor:
    """Extracts ``securityhub_findings``: findings in ASFF that have a compliance status.

    Parameters: ``record_state``, ``product_name``, ``compliance_status``; each may be empty, for all of them.
    """

    source: ClassVar[type[SourceModel]] = Source
    resumes: ClassVar[bool] = True

    async def extract(self, request: ExtractRequest, secret: Secret) -> Extraction:
        """Reads every page of every region."""
        whole = request.parameters["record_state"] == "ACTIVE" and not request.parameters["compliance_status"]
        return await _read(request, secret, _SecurityHub, _PACE, complete=whole)


class ConfigExtractor:
    """Extracts ``config_rules``: each rule's newest evaluation of each resource, with the rule."""

    source: ClassVar[type[SourceModel]] = Source
    resumes: ClassVar[bool] = True

    async def extract(self, request: ExtractRequest, secret: Secret) -> Extraction:
        """Reads every rule's every page, in every region."""
        return await _read(request, secret, _Config, timedelta(0), complete=True)


async def _read(
    request: ExtractRequest,
    secret: Secret,
    kind: Callable[[_Access, Mapping[str, Any]], Any],
    pace: timedelta,
    *,
    complete: bool,
) -> Extraction:
    source = read_source(Source, request.source)
    refuse_stand_in(source.endpoint_url, request.endpoints)
    listing = Listing(
        scopes=source.every,
        connect=lambda: kind(_Access(secret, source), request.parameters),
        complete=complete,
        # A stand-in has no limits but those it says itself.
        pace=timedelta(0) if source.endpoint_url else pace,
    )
    return await read(listing, request)


# ------------------------------------------------------------------------------------------------- access


class _RuleGoneError(Exception):
    """A rule was deleted since it was listed."""


class _Access:
    """One session of the credential, with a client for each region that is asked."""

    def __init__(self, secret: Secret, source: Source) -> None:
        self._source = source
        self._key = aws_access.keys(secret.reveal(), source.every[0], source.endpoint_url)
        self._clients: dict[str, Any] = {}
        self._body = b""

    def close(self) -> None:
        """Closes all clients."""
        for client in list(self._clients.values()):
            client.close()

    def call(self, service: str, operation: str, region: str, **arguments: Any) -> Mapping[str, Any]:
        """Asks, and returns the answer's JSON as AWS wrote it: boto3's own reading drops what it does not know."""
        failure: errors.Error
        try:
            getattr(self._client(service, region), operation)(**arguments)
            return dict(json.loads(self._body))
        except botocore.exceptions.ClientError as exc:
            code = str(exc.response.get("Error", {}).get("Code", ""))
            if code == "NoSuchConfigRuleException":
                raise _RuleGoneError from None
            if re.search(_CURSOR, code) and arguments.get("NextToken"):
                raise CursorRefusedError from None
            failure = _failure(exc, code, service, region)
        except (botocore.exceptions.BotoCoreError, ValueError):
            failure = errors.Unavailable("SOURCE_UNAVAILABLE", f"AWS did not answer in {region}; try again.")
        raise failure

    def _client(self, service: str, region: str) -> Any:
        if region not in self._clients:
            client = aws_access.client(service, region, self._source.endpoint_url, self._key, attempts=1)
            client.meta.events.register("before-parse.*.*", self._keep)
            self._clients[region] = client
        return self._clients[region]

    def _keep(self, response_dict: Mapping[str, Any], **_: Any) -> None:
        self._body = response_dict["body"]


_NAMES = {"securityhub": "Security Hub", "config": "AWS Config"}
_RIGHTS = {
    "securityhub": "securityhub:GetFindings",
    "config": "config:DescribeConfigRules, config:DescribeComplianceByConfigRule and "
    "config:GetComplianceDetailsByConfigRule",
}


def _failure(exc: botocore.exceptions.ClientError, code: str, service: str, region: str) -> errors.Error:
    answer: Mapping[str, Any] = exc.response.get("ResponseMetadata", {})
    status = int(answer.get("HTTPStatusCode", 0))
    where = f"{_NAMES[service]} in {region}"
    _LOG.info("source_failed", source=service, region=region, status=status, code=code[:64])
    if re.search(_BUSY, code) or status == 429:
        after = answer.get("HTTPHeaders", {}).get("retry-after", "")
        return errors.Unavailable(
            "SOURCE_THROTTLED",
            f"{where} takes no more requests at this time; try again later.",
            retry_after=timedelta(seconds=int(after)) if re.fullmatch(r"[0-9]{1,6}", after) else None,
        )
    if re.search(_REJECTED, code):
        return errors.FailedPrecondition(
            "CREDENTIAL_REJECTED",
            f"{where} refuses the stored credential: it is expired, revoked or mistyped, or the region is not enabled "
            "in the account.",
        )
    if re.search(_ABSENT, code):
        return errors.FailedPrecondition(
            "SOURCE_NOT_FOUND", f"{where} is not enabled in this account: enable it, or leave the region out."
        )
    if re.search(_DENIED, code):
        return errors.FailedPrecondition(
            "SOURCE_ACCESS_DENIED", f"The stored credential may not read {where}: allow it {_RIGHTS[service]}."
        )
    if re.search(_FAILING, code) or status >= 500:
        return errors.Unavailable("SOURCE_UNAVAILABLE", f"{where} did not answer; try again.")
    return errors.FailedPrecondition("SOURCE_REFUSED", f"{where} refused to list what it found.")


# ------------------------------------------------------------------------------------------------- Security Hub


class _SecurityHub:
    """GetFindings, oldest first: findings that change while they are read keep their places."""

    def __init__(self, access: _Access, parameters: Mapping[str, Any]) -> None:
        self._access = access
        wanted = {
            "RecordState": [parameters["record_state"]],
            "ProductName": [parameters["product_name"]],
            "ComplianceStatus": [parameters["compliance_status"]] if parameters["compliance_status"] else _STATUSES,
        }
        self._filters = {
            name: [{"Value": value, "Comparison": "EQUALS"} for value in values]
            for name, values in wanted.items()
            if all(values)
        }

    def close(self) -> None:
        self._access.close()

    def page(self, scope: str, cursor: str | None) -> Page:
        answer = self._access.call(
            "securityhub",
            "get_findings",
            scope,
            Filters=self._filters,
            SortCriteria=[{"Field": "CreatedAt", "SortOrder": "asc"}],
            MaxResults=_PAGE,
            **({"NextToken": cursor} if cursor else {}),
        )
        records = [
            Record(
                (item.get("Compliance") or {}).get("Status"),
                item,
                (str(item.get("AwsAccountId") or ""), str(item.get("Region") or scope)),
            )
            for item in answer["Findings"]
        ]
        return Page(records, answer.get("NextToken") or None, [(record.place[0], scope) for record in records])


# ------------------------------------------------------------------------------------------------- Config


class _Config:
    """The rules, a page at a time, and of each the evaluations, a page at a time.

    A position is the rules of the page that are still to be read, the first one's next evaluations, and the page after.
    A record is ``{"ConfigRule": …, "Compliance": …, "EvaluationResult": …}``, each as AWS wrote it.
    """

    def __init__(self, access: _Access, parameters: Mapping[str, Any]) -> None:
        self._access = access

    def close(self) -> None:
        self._access.close()

    def page(self, scope: str, cursor: str | None) -> Page:
        at = json.loads(cursor) if cursor else {"rules": [], "results": None, "next": ""}
        if not at["rules"]:
            return Page((), self._rules(scope, at["next"]))
        # arn:aws:config:<region>:<account>:config-rule/<id>
        place = (at["rules"][0]["ConfigRule"]["ConfigRuleArn"].split(":")[4], scope)
        rule, answer = at["rules"][0], self._results(scope, at["rules"][0], at["results"])
        records = [
            Record(item.get("ComplianceType"), {**rule, "EvaluationResult": item}, place)
            for item in answer["EvaluationResults"]
        ]
        at["results"] = answer.get("NextToken") or None
        if at["results"] is None:
            at["rules"] = at["rules"][1:]
        done = not at["rules"] and at["next"] is None
        return Page(records, None if done else json.dumps(at), [place])

    def _results(self, region: str, rule: Mapping[str, Any], token: str | None) -> Mapping[str, Any]:
        try:
            return self._ask(
                "get_compliance_details_by_config_rule",
                region,
                token,
                ConfigRuleName=rule["ConfigRule"]["ConfigRuleName"],
                Limit=_PAGE,
            )
        except _RuleGoneError:
            return {"EvaluationResults": ()}

    def _rules(self, region: str, token: str) -> str | None:
        """The position at the first rule of the page that a token stands for; None if there are no more rules."""
        page = self._ask("describe_compliance_by_config_rule", region, token)
        found = {item["ConfigRuleName"]: item.get("Compliance") for item in page["ComplianceByConfigRules"]}
        rules = []
        for some in itertools.batched(found, _RULES, strict=False):
            try:
                described = self._ask("describe_config_rules", region, None, ConfigRuleNames=list(some))
            except _RuleGoneError:
                raise errors.Unavailable("SOURCE_CHANGED", "A rule was deleted while the rules were listed.") from None
            rules += [
                {"ConfigRule": rule, "Compliance": found[rule["ConfigRuleName"]]} for rule in described["ConfigRules"]
            ]
        following = page.get("NextToken") or None
        if not rules and following is None:
            return None
        return json.dumps({"rules": rules, "results": None, "next": following})

    def _ask(self, operation: str, region: str, token: str | None, **arguments: Any) -> Mapping[str, Any]:
        if token:
            arguments["NextToken"] = token
        return self._access.call("config", operation, region, **arguments)
