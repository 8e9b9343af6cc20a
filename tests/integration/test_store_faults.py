"""What S3, STS and Blob storage say on a bad day, over the wire: a clear error or a good run, nothing between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest

from libs import errors
from libs.bigquery import Warehouse
from libs.tenancy import TenantId
from services.pipeline_executor.engine import Engine
from services.pipeline_executor.run_context import Outcome, SourceEndpoints
from services.pipeline_executor.templates import Templates
from tests.conftest import Emulator
from tests.support import focus_rows
from tests.support.aws import ROLE, AwsRuns, Bucket, Moto, as_parquet, running_moto
from tests.support.azure import AzureRuns, Azurite, Storage, exported, running_azurite
from tests.support.faulty import Fault, Faulty, before, s3_error, sts_error

TEMPLATES = Templates.load()
FIRST, LAST = date(2025, 11, 1), date(2025, 11, 30)


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with running_moto(tmp_path_factory.mktemp("moto")) as made:
        yield made


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as made:
        yield made


@pytest.fixture(scope="module")
def aws(warehouse: Warehouse, bigquery_emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> AwsRuns:
    endpoints = SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)
    made = AwsRuns(warehouse, TenantId("stormy"), endpoints, tmp_path_factory.mktemp("staging"), template="focus")
    asyncio.run(made.prepare())
    return made


@pytest.fixture(scope="module")
def azure(aws: AwsRuns, tmp_path_factory: pytest.TempPathFactory) -> AzureRuns:
    made = AzureRuns(
        aws.warehouse, TenantId("stormy_too"), aws.endpoints, tmp_path_factory.mktemp("staging"), template="focus"
    )
    asyncio.run(made.prepare())
    return made


@pytest.fixture
def bucket(moto: Moto) -> Bucket:
    made = moto.bucket()
    parts = {name: as_parquet([focus_rows.row()]) for name in ("a.parquet", "b.parquet")}
    made.deliver(parts, export="focus")
    return made


@pytest.fixture
def storage(azurite: Azurite) -> Storage:
    made = azurite.container()
    made.deliver({"a.csv": exported([focus_rows.as_text(focus_rows.azure())])}, export="focus", kind="FocusCost")
    return made


async def _no_wait(_: float) -> None:
    """Retries at once."""


async def run(runs: AwsRuns | AzureRuns, source: dict[str, Any], **changes: Any) -> tuple[Outcome, int]:
    """How the run ended, and how often its reading was tried."""
    provider = "aws" if isinstance(runs, AwsRuns) else "azure"
    context = await runs.begin(source, FIRST, LAST, **changes)
    result = await Engine(sleep=_no_wait).run(TEMPLATES.get(provider, "cost", "focus"), context)
    return result.outcome, result.steps[0].tries


async def refused(runs: AwsRuns | AzureRuns, source: dict[str, Any], reason: str, **changes: Any) -> errors.Error:
    provider = "aws" if isinstance(runs, AwsRuns) else "azure"
    counting = f"SELECT COUNT(*) AS n FROM focus_cost_and_usage AS t WHERE t.x_Provider = '{provider}'"
    there = await runs.rows(counting)
    with pytest.raises(errors.Error) as caught:
        await run(runs, source, **changes)
    assert caught.value.reason == reason
    assert "sig=" not in caught.value.message
    assert await runs.rows(counting) == there
    return caught.value


def through(faulty: Faulty, place: Bucket | Storage) -> dict[str, Any]:
    return place.source(endpoint_url=faulty.endpoint)


async def test_s3_that_throttles_is_asked_again_and_at_last_said(aws: AwsRuns, bucket: Bucket, moto: Moto) -> None:
    with before(moto.endpoint) as faulty:
        fault = Fault(r"GET .*\.parquet", 503, s3_error("SlowDown"), times=2)
        faulty.faults = [fault]
        assert await run(aws, through(faulty, bucket)) == (Outcome.PUBLISHED, 1)
        assert fault.seen == 2
        faulty.faults = [Fault(r"GET .*list-type", 503, s3_error("SlowDown"))]
        error = await refused(aws, through(faulty, bucket), "SOURCE_THROTTLED")
        assert error.retryable and error.metadata["step"] == "extract"


async def test_a_role_that_may_not_be_assumed_and_one_that_may_not_read(
    aws: AwsRuns, bucket: Bucket, moto: Moto
) -> None:
    with before(moto.endpoint) as faulty:
        faulty.faults = [Fault(r"Action=AssumeRole", 403, sts_error("AccessDenied"))]
        error = await refused(aws, through(faulty, bucket), "CREDENTIAL_REJECTED", secret=lambda: ROLE)
        assert ROLE["role_arn"] in error.message and not error.retryable
        faulty.faults = [Fault(r"Action=AssumeRole", 400, sts_error("Throttling"))]
        await refused(aws, through(faulty, bucket), "SOURCE_THROTTLED", secret=lambda: ROLE)
        for pattern in (r"GET .*list-type", r"GET .*\.parquet"):
            faulty.faults = [Fault(pattern, 403, s3_error("AccessDenied"))]
            error = await refused(aws, through(faulty, bucket), "SOURCE_ACCESS_DENIED", secret=lambda: ROLE)
            assert "s3:GetObject" in error.message


async def test_an_answer_that_ends_in_its_middle_is_no_file(aws: AwsRuns, bucket: Bucket, moto: Moto) -> None:
    with before(moto.endpoint) as faulty:
        faulty.faults = [Fault(r"GET .*b\.parquet", cut=True)]
        assert (await refused(aws, through(faulty, bucket), "SOURCE_UNAVAILABLE")).retryable
        faulty.faults = []
        assert await run(aws, through(faulty, bucket)) == (Outcome.PUBLISHED, 1)


async def test_blob_storage_that_is_busy_is_asked_again_and_at_last_said(
    azure: AzureRuns, storage: Storage, azurite: Azurite
) -> None:
    with before(azurite.endpoint) as faulty:
        fault = Fault(r"GET .*\.csv", 503, s3_error("ServerBusy"), times=2)
        faulty.faults = [fault]
        assert await run(azure, through(faulty, storage)) == (Outcome.PUBLISHED, 1)
        assert fault.seen == 2
        faulty.faults = [Fault(r"GET .*comp=list", 503, s3_error("ServerBusy"))]
        assert (await refused(azure, through(faulty, storage), "SOURCE_THROTTLED")).retryable
        # A signature may end while the files are read.
        faulty.faults = [Fault(r"GET .*\.csv", 403, s3_error("AuthenticationFailed"))]
        await refused(azure, through(faulty, storage), "CREDENTIAL_REJECTED")
