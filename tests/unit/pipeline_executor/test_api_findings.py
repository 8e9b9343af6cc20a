"""The readers of compliance APIs over the wire: every page as the provider wrote it, politely, and on after a death."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest

from libs import errors
from services.pipeline_executor.providers import EXTRACTORS, check_source, paging
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest, Inside
from services.pipeline_executor.retry import Retry
from services.pipeline_executor.run_context import Secret, SourceEndpoints
from services.pipeline_executor.templates import Templates
from tests.support.cloud_apis import Item, RefusedError
from tests.support.compliance_apis import (
    ACCOUNT,
    DATASETS,
    PRINCIPAL,
    RULE,
    SUBSCRIPTION,
    Served,
    asff,
    evaluation,
    serving,
)
from tests.support.stack import until

TEMPLATES = Templates.load()
TODAY = datetime(2025, 11, 17, 5, tzinfo=UTC)


@dataclass
class Api(Served):
    """One API with a listing behind it, and a tenant's step that reads it."""

    directory: Path

    async def extract(self, **changes: Any) -> Extraction:
        """One try of the step."""
        self.directory.mkdir(exist_ok=True)
        source = check_source(self.provider, [self.dataset], {**self.source, **changes.pop("source", {})})
        parameters = TEMPLATES.get(*self.pipeline.split("/")).check_parameters(changes.pop("parameters", {}))
        request: dict[str, Any] = {
            "dataset": self.dataset,
            "start_date": TODAY.date(),
            "end_date": TODAY.date(),
            "source": source,
            "parameters": parameters,
            "directory": self.directory,
            "platform_project": "local",
            "endpoints": SourceEndpoints("http://127.0.0.1:1"),
            "report": lambda rows, size: None,
            "inside": cast(Inside, None),
            "now": TODAY,
        }
        secret = Secret(changes.pop("secret", self.secret))
        return await EXTRACTORS[self.provider][self.dataset].extract(ExtractRequest(**{**request, **changes}), secret)


def rows(extraction: Extraction) -> list[dict[str, Any]]:
    return [row for path in extraction.files for row in pq.read_table(path).to_pylist()]


def records(extraction: Extraction) -> list[Any]:
    """What the provider said, without what is said of all of its kind."""
    found = [json.loads(row["record"]) for row in rows(extraction)]
    return [item.get("EvaluationResult", item.get("assessment", item)) for item in found]


PLACES = {"aws": (ACCOUNT, "eu-west-1"), "azure": (SUBSCRIPTION, ""), "gcp": ("4711", "")}
every_api = pytest.mark.parametrize("api", DATASETS, indirect=True)


@pytest.fixture
def api(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(paging, "_CALLS", Retry(3, timedelta(milliseconds=1), timedelta(milliseconds=2)))
    with serving(request.param, tmp_path) as made:
        yield Api(**vars(made), directory=tmp_path / "extract")


def filled(api: Api, pages: int) -> list[Item]:
    """Lists so many pages; what they hold."""
    items = api.many(pages * 3)
    api.fill(items)
    return items


def faults(times: int, status: int = 503, code: str = "ServiceUnavailable", **more: Any) -> list[RefusedError]:
    return [RefusedError(status, code, **more) for _ in range(times)]


async def refused(api: Api, reason: str, **changes: Any) -> errors.Error:
    with pytest.raises(errors.Error) as caught:
        await api.extract(**changes)
    assert caught.value.reason == reason
    assert "secret text" not in caught.value.message
    assert "a-good-secret" not in f"{caught.value.message}{caught.value.__cause__!r}{caught.value.__context__!r}"
    return caught.value


@every_api
async def test_every_page_is_read_once_as_the_provider_wrote_it(api: Api) -> None:
    listed = filled(api, 10)
    found = await api.extract()
    assert records(found) == listed
    assert api.asked() == list(range(10))
    assert found.rows == 30
    statuses: dict[str, int] = {}
    for row in rows(found):
        statuses[row["status"]] = statuses.get(row["status"], 0) + 1
    assert found.totals == {status: {"row_count": Decimal(count)} for status, count in statuses.items()}
    assert len(statuses) > 1
    assert all(scope.complete for scope in found.scopes)
    assert [(scope.account_uid, scope.region) for scope in found.scopes] == [PLACES[api.provider]]


@every_api
async def test_a_source_that_dies_at_page_7_of_10_is_read_on_from_there(api: Api) -> None:
    listed = filled(api, 10)
    api.listing.faults[(api.scope, 6)] = faults(3)
    failure = await refused(api, "SOURCE_UNAVAILABLE")
    assert failure.retryable
    assert api.asked() == [0, 1, 2, 3, 4, 5, 6, 6, 6]
    api.listing.asked.clear()
    found = await api.extract()
    assert api.asked() == [6, 7, 8, 9]
    assert records(found) == listed
    assert len(found.files) == 2
    assert found.details["pages_of_earlier_tries"] >= 6
    assert sum(measures["row_count"] for measures in found.totals.values()) == found.rows == 30
    assert [(scope.account_uid, scope.region) for scope in found.scopes] == [PLACES[api.provider]]


@every_api
async def test_a_position_that_is_lost_between_tries_begins_anew_and_doubles_nothing(api: Api) -> None:
    listed = filled(api, 10)
    api.listing.faults[(api.scope, 6)] = faults(3)
    await refused(api, "SOURCE_UNAVAILABLE")
    api.listing.generation += 1
    api.listing.asked.clear()
    found = await api.extract()
    assert api.asked() == list(range(10))
    assert records(found) == listed
    assert found.details["pages_of_earlier_tries"] == 0


@every_api
async def test_another_question_is_not_answered_with_pages_of_an_earlier_one(api: Api) -> None:
    listed = filled(api, 4)
    api.listing.faults[(api.scope, 2)] = faults(3)
    await refused(api, "SOURCE_UNAVAILABLE")
    api.listing.asked.clear()
    found = await api.extract(parameters={"accept_drop": True})
    assert api.asked() == [0, 1, 2, 3]
    assert records(found) == listed


@every_api
async def test_a_session_that_ends_is_begun_again(api: Api) -> None:
    listed = filled(api, 10)
    api.listing.session_pages = 5
    found = await api.extract()
    assert records(found) == listed
    assert api.asked().count(api.asked()[4]) <= 2
    if api.dataset in ("securityhub_findings", "policy_states", "defender_assessments"):
        assert api.listing.sessions >= 2


@every_api
async def test_a_throttled_call_waits_as_long_as_it_is_told(api: Api) -> None:
    filled(api, 3)
    api.listing.faults[(api.scope, 1)] = faults(2, 429, "TooManyRequestsException", retry_after=0)
    if api.dataset in ("securityhub_findings", "policy_states", "scc_findings"):
        api.listing.faults[(api.scope, 2)] = faults(1, 429, "ThrottlingException", retry_after=1)
    found = await api.extract()
    assert found.rows == 9
    assert api.asked()[:4] == [0, 1, 1, 1]
    if api.asked()[-2:] == [2, 2]:
        assert api.listing.times[-1] - api.listing.times[-2] >= 1


@every_api
async def test_one_that_says_come_back_in_an_hour_is_left_to_the_step(api: Api) -> None:
    filled(api, 2)
    api.listing.faults[(api.scope, 1)] = faults(1, 429, "ThrottlingException", retry_after=3600)
    failure = await refused(api, "SOURCE_THROTTLED")
    assert failure.retry_after == timedelta(hours=1)
    assert (await api.extract()).rows == 6


@every_api
async def test_a_scope_that_may_not_be_read_ends_the_run(api: Api) -> None:
    filled(api, 3)
    api.listing.faults[(api.scope, 1)] = faults(1, 403, "AccessDeniedException")
    assert not (await refused(api, "SOURCE_ACCESS_DENIED")).retryable


@every_api
async def test_a_run_that_is_cancelled_leaves_no_thread_behind(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "_CALLS", Retry(8, timedelta(seconds=60), timedelta(seconds=60)))
    filled(api, 3)
    api.listing.faults[(api.scope, 1)] = faults(1, 429, "ThrottlingException", retry_after=60)
    task = asyncio.create_task(api.extract())
    await asyncio.to_thread(until, lambda: (api.scope, 1) in api.listing.asked, bool, timeout=30, what="page 1")
    task.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task


@every_api
async def test_a_stand_in_is_refused_in_a_deployment(api: Api) -> None:
    await refused(api, "SOURCE_INVALID", endpoints=SourceEndpoints())


@pytest.mark.parametrize("api", ["policy_states"], indirect=True)
async def test_a_revoked_principal_is_told_apart(api: Api) -> None:
    await refused(api, "CREDENTIAL_REJECTED", secret={**PRINCIPAL, "client_secret": "revoked-secret"})
    await refused(api, "CREDENTIAL_UNUSABLE", secret={"sas_token": "sv=1&sig=2"})


@pytest.mark.parametrize("api", ["securityhub_findings"], indirect=True)
async def test_regions_are_read_one_after_another_with_one_filter(api: Api) -> None:
    filled(api, 2)
    api.listing.pages["us-east-1"] = [[asff(100)]]
    found = await api.extract(source={"regions": ["us-east-1", "eu-west-1", "us-east-1"]})
    assert [row["scope"] for row in rows(found)] == ["us-east-1"] + ["eu-west-1"] * 6
    assert api.listing.filters[0] == {
        "RecordState": [{"Value": "ACTIVE", "Comparison": "EQUALS"}],
        "ProductName": [{"Value": "Security Hub", "Comparison": "EQUALS"}],
        "ComplianceStatus": [
            {"Value": status, "Comparison": "EQUALS"} for status in ("PASSED", "FAILED", "WARNING", "NOT_AVAILABLE")
        ],
    }
    api.listing.faults[("us-east-1", 0)] = faults(1, 401, "InvalidAccessException")
    api.directory = api.directory.with_name("other")
    assert "us-east-1" in (await refused(api, "SOURCE_NOT_FOUND", source={"regions": ["us-east-1"]})).message


@pytest.mark.parametrize("api", ["securityhub_findings"], indirect=True)
async def test_what_is_left_out_on_purpose_closes_nothing(api: Api) -> None:
    filled(api, 1)
    found = await api.extract(parameters={"compliance_status": "FAILED", "product_name": ""})
    assert [scope.complete for scope in found.scopes] == [False]
    assert api.listing.filters[-1] == {
        "RecordState": [{"Value": "ACTIVE", "Comparison": "EQUALS"}],
        "ComplianceStatus": [{"Value": "FAILED", "Comparison": "EQUALS"}],
    }
    with pytest.raises(errors.InvalidArgument, match="must be one of PASSED, FAILED"):
        await api.extract(parameters={"compliance_status": "BROKEN"})


@pytest.mark.parametrize("api", ["scc_findings"], indirect=True)
async def test_a_day_that_is_over_cannot_be_read(api: Api) -> None:
    filled(api, 1)
    assert (await api.extract(now=TODAY + timedelta(days=1))).rows == 3
    await refused(api, "SOURCE_HAS_NO_PAST", now=TODAY + timedelta(days=3))
    await refused(api, "SOURCE_HAS_NO_PAST", now=TODAY - timedelta(days=1))


@pytest.mark.parametrize("api", ["config_rules"], indirect=True)
async def test_rules_are_listed_in_pages_and_described(api: Api) -> None:
    def rule(name: str) -> Item:
        return {"ConfigRule": {**RULE["ConfigRule"], "ConfigRuleName": name}, "Compliance": RULE["Compliance"]}

    api.listing.pages = {
        "rules": [[rule(f"r{n}") for n in range(30)], [], [rule("last")]],
        "r3": [[evaluation(1)], [evaluation(2)]],
        "last": [[evaluation(3)]],
    }
    found = await api.extract()
    said = [json.loads(row["record"]) for row in rows(found)]
    assert [(item["ConfigRule"]["ConfigRuleName"], item["EvaluationResult"]) for item in said] == [
        ("r3", evaluation(1)),
        ("r3", evaluation(2)),
        ("last", evaluation(3)),
    ]


@pytest.mark.parametrize("api", ["defender_assessments"], indirect=True)
async def test_assessments_come_with_what_is_said_of_their_kind(api: Api) -> None:
    filled(api, 1)
    said = [json.loads(row["record"]) for row in rows(await api.extract())]
    assert [item["metadata"]["properties"]["severity"] for item in said] == ["High"] * 3


@pytest.mark.parametrize("api", ["scc_findings"], indirect=True)
async def test_misconfigurations_are_asked_for(api: Api) -> None:
    filled(api, 1)
    await api.extract()
    assert api.listing.filters == ['findingClass="MISCONFIGURATION"']


GOOD: Sequence[tuple[str, str, dict[str, Any]]] = [
    ("aws", "securityhub_findings", {"regions": ["eu-west-1", "us-gov-west-1"]}),
    ("aws", "config_rules", {"region": "eu-west-1"}),
    ("azure", "policy_states", {"subscription_ids": [SUBSCRIPTION]}),
    ("gcp", "scc_findings", {"parent": "folders/123"}),
    ("gcp", "scc_findings", {"parent": "projects/acme-prod"}),
]


@pytest.mark.parametrize(("provider", "dataset", "source"), GOOD)
def test_good_sources(provider: str, dataset: str, source: dict[str, Any]) -> None:
    assert check_source(provider, [dataset], source) == source


def test_a_source_of_another_data_set_is_left_alone() -> None:
    both = {"bucket": "acme-costs", "prefix": "exports", "regions": ["eu-west-1"]}
    assert check_source("aws", ["config_rules"], both) == {"regions": ["eu-west-1"]}
    assert check_source("aws", ["cost_and_usage_report"], both) == {"bucket": "acme-costs", "prefix": "exports"}


BAD: Sequence[tuple[str, str, dict[str, Any], str]] = [
    ("aws", "securityhub_findings", {"bucket": "acme-costs"}, "source.regions"),
    ("aws", "securityhub_findings", {"regions": []}, "source.regions"),
    ("aws", "securityhub_findings", {"regions": "eu-west-1"}, "source.regions"),
    ("aws", "securityhub_findings", {"regions": ["eu-west-1", "evil.example"]}, "source.regions"),
    ("aws", "config_rules", {"region": "eu-west-1", "accounts": ["1"]}, "source.accounts"),
    ("azure", "policy_states", {"storage_account": "acme"}, "source.subscription_ids"),
    ("azure", "policy_states", {"subscription_ids": ["../../x"]}, "source.subscription_ids"),
    ("gcp", "scc_findings", {"project_id": "acme-prod"}, "source.parent"),
    ("gcp", "scc_findings", {"parent": "organizations/1/sources/2"}, "source.parent"),
]


@pytest.mark.parametrize(("provider", "dataset", "source", "field"), BAD)
def test_bad_sources_name_the_field(provider: str, dataset: str, source: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        check_source(provider, [dataset], source)
    assert [violation.field for violation in caught.value.field_violations] == [field]
    assert "evil" not in caught.value.message
