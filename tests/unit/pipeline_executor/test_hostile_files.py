"""Files that are no exports, through the readers of AWS and Azure: each a clear error, soon, and no row of it kept."""

from __future__ import annotations

import gzip
import io
import threading
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from libs import errors
from services.pipeline_executor.providers import aws, aws_export, aws_rows, azure, azure_export, bounds
from services.pipeline_executor.providers.extraction import ExtractRequest, Inside
from services.pipeline_executor.providers.object_store import Listed
from services.pipeline_executor.providers.parquet import ParquetFile
from services.pipeline_executor.run_context import SourceEndpoints
from tests.support.aws import exported
from tests.support.aws_rows import row

FIRST, LAST, NOON = date(2025, 11, 1), date(2025, 11, 30), datetime(2025, 11, 20, 12, tzinfo=UTC)
MANY = bounds.MAX_COLUMNS + 1
GOOD = exported([row()])
HEADER, _, BODY = GOOD.partition(b"\n")


def packed(*parts: bytes) -> bytes:
    """gzip of all parts, made without holding them together."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as file:
        for part in parts:
            file.write(part)
    return out.getvalue()


def bomb(piece: bytes, megabytes: int = 48) -> bytes:
    """So many megabytes of one piece, packed."""
    return packed(*([piece * (2**20 // len(piece))] * megabytes))


def wide_parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({f"c{n}": pa.array([], pa.string()) for n in range(MANY)}), out)
    return out.getvalue()


HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a bomb of one line": ("csv.gz", lambda: bomb(b"a")),
    "a bomb of NULs": ("csv.gz", lambda: bomb(b"\0")),
    "a million columns": ("csv", lambda: b",".join(b"c%d" % n for n in range(1_000_000)) + b"\n"),
    "too many columns": ("csv", lambda: b",".join(b"c%d" % n for n in range(MANY)) + b"\n1\n"),
    "too many columns, packed": ("csv.gz", lambda: packed(b",".join(b"c%d" % n for n in range(MANY)))),
    "too many columns as parquet": ("parquet", wide_parquet),
    "NULs in the header": ("csv", lambda: HEADER[:20] + b"\0" + HEADER[20:] + b"\n" + BODY),
    "UTF-16": ("csv", lambda: GOOD.decode().encode("utf-16")),
    "Latin-1": ("csv", lambda: b"caf\xe9," + GOOD),
    "no header at all": ("csv", lambda: b""),
    "an image": ("csv", lambda: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
    "a zip archive": ("csv.gz", lambda: b"PK\x03\x04" + bytes(200)),
    "gzip cut short": ("csv.gz", lambda: packed(GOOD * 50)[:-40]),
    "gzip with a wrong sum": ("csv.gz", lambda: packed(GOOD)[:-8] + bytes(8)),
    "parquet cut short": ("parquet", lambda: b"PAR1" + bytes(100)),
    "parquet that is text": ("parquet", lambda: GOOD),
    "an open quote": ("csv", lambda: b'"' + GOOD),
    "columns of something else": ("csv", lambda: b"name,email\nann,ann@example.com\n"),
}


def read_aws(folder: Path, kind: str, content: bytes) -> int:
    """The rows that AWS's reader keeps of a file."""
    path = folder / f"part.{kind}"
    path.write_bytes(content)
    part = Listed(f"p/{path.name}", len(content), NOON, "e")
    delivery = aws_export.Delivery(
        root="p", export="costs", start=FIRST, end=LAST, manifest=part, parts=(part,), columns=(), run="r"
    )
    request = ExtractRequest(
        dataset="cost_and_usage_report",
        start_date=FIRST,
        end_date=LAST,
        source={},
        directory=folder,
        platform_project="p",
        endpoints=SourceEndpoints(),
        inside=cast(Inside, None),  # of what is published already, which this reader does not ask
        report=lambda rows, size: None,
    )
    work = aws._Work(aws_rows.report_layout(), request)
    engine = aws_rows.connect(folder)
    try:
        aws._decode(threading.Event(), path, part, delivery, aws_rows.Window(FIRST, LAST, FIRST, LAST), work, engine)
    finally:
        engine.close()
    return work.rows


def read_azure(folder: Path, kind: str, content: bytes) -> int:
    """The rows that Azure's reader finds in a file."""
    path = folder / f"part.{kind}"
    path.write_bytes(content)
    part = azure_export.Part(f"p/{path.name}", len(content))
    delivery = azure_export.Delivery(
        export="costs", view="ACTUAL", start=FIRST, end=LAST, run="r", written=NOON, parts=(part,)
    )
    reading = azure_export.Reading(delivery, frozenset({FIRST}))
    work = azure._Work(azure_export.cost_layout(), "ACTUAL", folder)
    with ParquetFile(folder / "out.parquet", work.layout.schema) as target:
        return azure._decode(threading.Event(), path, part, reading, work, target)


@pytest.mark.parametrize("read", [read_aws, read_azure], ids=["aws", "azure"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_by_name_before_it_fills_the_memory(
    tmp_path: Path, what: str, read: Callable[[Path, str, bytes], int]
) -> None:
    kind, content = HOSTILE[what]
    made = content()
    tracemalloc.start()
    try:
        with pytest.raises(errors.FailedPrecondition) as refused:
            read(tmp_path, kind, made)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"part.{kind}" in refused.value.message
    assert peak < 32 * 2**20


def test_a_bomb_of_rows_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Well-formed rows without end: stopped by what they unpack to."""
    monkeypatch.setattr(bounds, "_ALWAYS_ALLOWED", 2**20)
    monkeypatch.setattr(bounds, "MAX_RATIO", 10)
    header = b"date,costInBillingCurrency,billingCurrency,note\n"
    made = packed(header, *([b"11/01/2025,1,USD,%s\n" % (b"a" * 5_000)] * 2_000))
    with pytest.raises(errors.FailedPrecondition, match="unpacks to more than"):
        read_azure(tmp_path, "csv.gz", made)


def test_an_honest_file_is_read(tmp_path: Path) -> None:
    assert read_aws(tmp_path, "csv.gz", packed(GOOD)) == 1
