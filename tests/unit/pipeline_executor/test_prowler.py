"""Prowler's outputs: which objects are read for a day, and how their records are taken from them."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from libs import errors
from services.pipeline_executor.providers import aws_rows, check_source, prowler
from services.pipeline_executor.providers.object_store import Listed
from services.pipeline_executor.providers.parquet import ParquetFile
from services.pipeline_executor.providers.prowler import decide

DAY = date(2025, 11, 17)
NOON = datetime(2025, 11, 17, 12, tzinfo=UTC)
EARLIER = datetime(2025, 11, 16, 12, tzinfo=UTC)
SAMPLES = Path(__file__).parents[2] / "support" / "data" / "prowler"


def listed(*paths: str, modified: datetime = EARLIER) -> list[Listed]:
    return [Listed(path, 1, modified) for path in paths]


def test_a_days_outputs_are_those_stamped_with_it_or_else_written_on_it_the_newest_first() -> None:
    objects = [
        *listed(
            "scans/prowler-output-1-20251117060000.ocsf.json",
            "scans/prowler-output-1-20251117180000.ocsf.json",
            "scans/prowler-output-1-20251117180000.csv",
            "scans/prowler-output-2-20251117070000.csv",
            "scans/compliance/prowler-output-2-20251117070000_cis_1.4_aws.csv",
            "scans/prowler-output-3-20251116230000.ocsf.json",
            "costs/20251117120000.csv",
            "scans/prowler-output-1-20251117180000.html",
        ),
        *listed("latest.ocsf.json", modified=NOON),
    ]
    found, outputs = decide(objects, DAY)
    assert found
    assert [output.item.path for output in outputs] == [
        "scans/prowler-output-1-20251117180000.ocsf.json",
        "latest.ocsf.json",
        "scans/prowler-output-2-20251117070000.csv",
        "scans/prowler-output-1-20251117060000.ocsf.json",
    ]
    assert [output.is_csv for output in outputs] == [False, False, True, False]
    assert decide(listed("costs/a.csv", "x.json"), DAY) == (False, [])


def record(account: str, **changes: Any) -> dict[str, Any]:
    return {
        "class_uid": 2004, "status_code": "FAIL", "cloud": {"account": {"uid": account}}, "text": 'a "]" ü', **changes,
    }  # fmt: skip


class Files:
    """Reads files one after another, the newest first, as a run does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = ParquetFile(folder / "rows.parquet", prowler.SCHEMA)
        self.work = prowler._Work(folder, self.target)

    def read(self, content: bytes, name: str = "a.ocsf.json") -> None:
        path = self.folder / name
        path.write_bytes(content)
        engine = aws_rows.connect(self.folder)
        try:
            prowler._decode(threading.Event(), path, name.endswith(".csv"), name, self.work, engine)
        finally:
            engine.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def as_json(records: Sequence[dict[str, Any]], indent: int | None = None) -> bytes:
    return json.dumps(records, indent=indent, ensure_ascii=False).encode()


def test_each_account_is_taken_from_the_newest_output_that_has_it(files: Files) -> None:
    files.read(as_json([record("1"), record("2"), record("1")]))
    files.read(as_json([record("3"), record("1")], indent=4))
    files.read(b"[]")
    files.read(b"\xef\xbb\xbf [ ]\n")
    assert (files.target.rows, files.work.accounts) == (4, {"1", "2", "3"})
    assert files.work.counted == {("1", "FAIL"): 2, ("2", "FAIL"): 1, ("3", "FAIL"): 1}
    assert files.work.totals() == {"FAIL": {"row_count": 4}}
    assert files.work.truncated == []


def test_records_are_taken_a_piece_at_a_time(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prowler, "_READ", 7)
    monkeypatch.setattr(prowler, "_BATCH", 2)
    given = [record("1", number=number) for number in range(5)]
    path = files.folder / "b.json"
    path.write_bytes(as_json(given, indent=1))
    assert [json.loads(text) for _, text in prowler._json_records(path)] == given
    files.read(as_json(given))
    assert files.target.rows == 5


def test_a_truncated_output_is_left_aside_and_named_with_its_account(files: Files) -> None:
    files.read(as_json([record("1"), record("2")])[:-40])
    assert (files.target.rows, files.work.truncated) == (0, [("a.ocsf.json", "1")])
    files.read(as_json([record("1")]))
    assert files.work.counted == {("1", "FAIL"): 1}


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (b'[{"class_uid": 2004, "cloud": }]', "a.ocsf.json", "SOURCE_FILE_DAMAGED"),
        (b'{"a": [1]}  ]', "a.ocsf.json", "SOURCE_FILE_INVALID"),
        (b'[{"class_uid": 1001, "cloud": {"account": {"uid": "1"}}}]', "a.ocsf.json", "SOURCE_FILE_INVALID"),
        (b"A;B\n1;2\n", "prowler.csv", "SOURCE_FILE_INVALID"),
        (b"ACCOUNT_UID;CHECK_ID;STATUS;SEVERITY;RESOURCE_UID\n1;2;3;4\n", "prowler.csv", "SOURCE_FILE_DAMAGED"),
    ],
)  # fmt: skip
def test_what_is_no_output_is_refused_by_name(files: Files, content: bytes, name: str, reason: str) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        files.read(content, name)
    assert caught.value.reason == reason
    assert name in caught.value.message


@pytest.mark.parametrize("cloud", ["aws", "azure", "gcp"])
def test_the_samples_are_read_in_both_forms(files: Files, cloud: str) -> None:
    files.read((SAMPLES / f"example_output_{cloud}.ocsf.json").read_bytes())
    assert (files.target.rows, sum(files.work.counted.values())) == (5, 5)
    files.work.counted.clear()
    files.read((SAMPLES / f"example_output_{cloud}.csv").read_bytes(), "prowler.csv")
    assert (files.target.rows, sum(files.work.counted.values())) == (9, 4)


def test_a_source_names_the_place_and_the_folder_of_the_outputs() -> None:
    stored = {"bucket": "acme-data", "prefix": "costs", "region": "eu-west-1"}
    given = {"prowler_prefix": "scans"}
    assert check_source("aws", ["prowler"], {**stored, **given}) == {
        "bucket": "acme-data", "region": "eu-west-1", "prowler_prefix": "scans",
    }  # fmt: skip
    with pytest.raises(errors.InvalidArgument) as caught:
        check_source("gcp", ["prowler"], {"project_id": "acme-billing"})
    assert [violation.field for violation in caught.value.field_violations] == ["source.bucket"]
