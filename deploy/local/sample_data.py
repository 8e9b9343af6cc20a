"""The sample customers: a billing export table in a project of its own, as Google would have written it, and deliveries
of AWS and Azure in their buckets, as those lay them out.

``python -m deploy.local.sample_data FOLDER ACCOUNT`` seeds the local stack's emulator, and the folder of its object
stores. Safe to run at every start: what is there whole is left alone, the half-made is made anew. ``sample/ORIGIN.md``
says what the data are.
"""

from __future__ import annotations

import ast
import csv
import gzip
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.api_core.exceptions import NotFound
from google.cloud import bigquery

from libs.bigquery import build_client

CUSTOMER_PROJECT = "sample-customer"
DATASET = "billing"
BILLING_ACCOUNT = "01C0DE-5A3B1E-2F4D6C"
TABLE = f"gcp_billing_export_v1_{BILLING_ACCOUNT.replace('-', '_')}"
_FOLDER = Path(__file__).parent / "sample"
AWS_FILE, AZURE_FILE = _FOLDER / "aws_cur_2025-11.csv.gz", _FOLDER / "azure_cost_2025-11.csv.gz"
BUCKET, REPORT_PREFIX = "sample-billing", "costs"
CONTAINER, EXPORT_DIRECTORY = "exports", "costs"
_RECORDS = ("service", "sku", "project", "location", "usage", "invoice")
_LISTS = ("labels", "system_labels", "credits", "project.labels")
_NUMBERS = ("cost", "currency_conversion_rate", "usage.amount", "usage.amount_in_pricing_units")
_TIMES = ("usage_start_time", "usage_end_time", "export_time")


def seed(client: bigquery.Client, *, dataset: str = DATASET, table: str = TABLE) -> bigquery.TableReference:
    """Fills the export table of the client's project; does nothing if all its rows are there, whatever came after."""
    reference = bigquery.DatasetReference(client.project, dataset).table(table)
    rows = [*generated(), *planted()]
    try:
        if (client.get_table(reference).num_rows or 0) >= len(rows):
            return reference
        client.delete_table(reference)
    except NotFound:
        client.create_dataset(bigquery.DatasetReference(client.project, dataset), exists_ok=True)
    export = bigquery.Table(reference, schema=schema())
    export.description = "Cloud Billing standard usage cost export (sample data)."
    export.time_partitioning = bigquery.TimePartitioning()
    client.create_table(export)
    # A load job would put every row into today's partition: the rows go through a table beside it.
    arrived = bigquery.DatasetReference(client.project, dataset).table(f"{table}_arrived")
    config = bigquery.LoadJobConfig(schema=schema(), write_disposition="WRITE_TRUNCATE")
    client.load_table_from_json(rows, arrived, job_config=config).result()
    columns = ", ".join(f"`{column.name}`" for column in schema())
    client.query_and_wait(
        f"INSERT INTO `{client.project}.{dataset}.{table}` (_PARTITIONTIME, {columns}) "  # noqa: S608 — names of ours
        f"SELECT TIMESTAMP_TRUNC(t.export_time, DAY), {columns} FROM `{client.project}.{dataset}.{table}_arrived` AS t"
    )
    client.delete_table(arrived)
    return reference


def deliver(folder: Path, account: str) -> None:
    """Writes a legacy report of AWS and an actual-cost export of Azure below the folder; does nothing if they are."""
    report = f"{REPORT_PREFIX}/cur/20251101-20251201"
    part = f"{report}/a1/cur-1.csv.gz"
    manifest = {"assemblyId": "a1", "bucket": BUCKET, "compression": "GZIP", "reportKeys": [part]}
    bucket = folder / "s3" / BUCKET
    _put(bucket / part, AWS_FILE.read_bytes())
    _put(bucket / report / "cur-Manifest.json", json.dumps(manifest).encode())
    run = f"{EXPORT_DIRECTORY}/actual/20251101-20251130/r1"
    content = AZURE_FILE.read_bytes()
    blob = {"blobName": f"{run}/part_1_0001.csv.gz", "byteCount": len(content)}
    exported = {
        "manifestVersion": "2024-04-01",
        "blobCount": 1,
        "exportConfig": {"exportName": "actual", "type": "ActualCost", "dataVersion": "2021-10-01"},
        "runInfo": {"runId": "r1", "submittedTime": "2025-12-05T04:00:00.0000000Z"},
        "blobs": [blob],
    }
    container = folder / "blob" / account / CONTAINER
    _put(container / str(blob["blobName"]), content)
    _put(container / run / "manifest.json", json.dumps(exported).encode())


def _put(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.replace(path)


def schema() -> list[bigquery.SchemaField]:
    """The columns of a standard export."""
    text = (_FOLDER / "gcp_billing_export.schema.json").read_text("utf-8")
    return [bigquery.SchemaField.from_api_repr(field) for field in json.loads(text)]


def generated() -> Iterator[dict[str, Any]]:
    """The generator's rows, with ``a.b`` columns nested and texts made lists, numbers and times."""
    with gzip.open(_FOLDER / "gcp_standard_2025-11.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for flat in csv.DictReader(file):
            yield _nested(flat)


def planted() -> Iterator[dict[str, Any]]:
    """The rows written by hand."""
    with (_FOLDER / "planted_2025-11-17.jsonl").open(encoding="utf-8") as file:
        for line in file:
            yield {"billing_account_id": BILLING_ACCOUNT, **json.loads(line)}


def _nested(flat: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, text in flat.items():
        value = _value(name, text)
        record, _, member = name.partition(".")
        if member and record in _RECORDS and value is not None:
            row.setdefault(record, {})[member] = value
        elif not member and name != "partition_date" and value is not None:
            row[name] = value
    return {**row, "billing_account_id": BILLING_ACCOUNT}


def _value(name: str, text: str) -> Any:
    if name in _LISTS:
        # The generator writes some of them as JSON and some as Python does.
        return ast.literal_eval(text or "[]")
    if not text:
        return None
    if name in _NUMBERS:
        return float(text)
    return f"{text}Z" if name in _TIMES else text


def main() -> None:
    """Seeds the emulator that ``CONVERGENCE_BIGQUERY_ENDPOINT`` names, and the folder and account of the arguments."""
    folder, account = sys.argv[1:]
    deliver(Path(folder), account)
    client = build_client(CUSTOMER_PROJECT, endpoint=os.environ["CONVERGENCE_BIGQUERY_ENDPOINT"])
    reference = seed(client)
    print(f"{reference.project}.{reference.dataset_id}.{reference.table_id}: {len([*generated(), *planted()])} rows")


if __name__ == "__main__":
    main()
