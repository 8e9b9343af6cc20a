"""The SQL of compliance templates, analysed whole: the shapes of its staging tables are written down, so that Google's
analyser can be asked about statements and scripts that ``test_sql`` only parses.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.cloud.bigquery import SchemaField

from libs import tables
from services.pipeline_executor.providers import prowler
from tests.contract.test_sql import PLACEHOLDER, ROOT, catalog_of, compiled, language, simple_type

__all__ = ["compiled", "language"]
SHARED = ROOT / "services/pipeline_executor/pipelines/shared"
HISTORY = {field.name: field for field in tables.table("compliance", "compliance_history").fields}
OBSERVATION = ROOT / "services/pipeline_executor/reference/compliance_observation.schema.json"
MADE = re.findall(r" AS (\w+)(?:,\n|\nFROM identified)", (SHARED / "compliance_findings.sql").read_text("utf-8"))
STAGED: dict[str, list[SchemaField]] = {
    "raw": list(prowler.SCHEMA),
    "observations": [SchemaField.from_api_repr(field) for field in json.loads(OBSERVATION.read_text())["fields"]],
    "rows": [HISTORY[name] for name in dict.fromkeys(MADE) if name in HISTORY],
    "covered": [
        SchemaField("account_uid", "STRING"),
        SchemaField("region", "STRING"),
        SchemaField("findings", "INT64"),
        SchemaField("complete", "BOOL"),
    ],
    "changes": [
        HISTORY[name]
        for name in (
            "finding_uid", "state", "change", "previous_state", "first_seen", "last_seen", "opened_at", "closed_at",
            "closed_reason", "reopened_at", "reopen_count",
        )
    ],
}  # fmt: skip
PARAMETERS = {
    "provider": "STRING", "template": "STRING", "domain": "STRING", "pipeline_logging_id": "STRING", "attempt": "INT64",
    "start_date": "DATE", "end_date": "DATE", "extract_start_time": "TIMESTAMP", "end_time": "TIMESTAMP",
    "scopes": "STRING", "accept_drop": "BOOL",
}  # fmt: skip
FILES = [
    *(
        SHARED / f"{name}.sql"
        for name in ("prowler", "compliance_findings", "compliance_measure", "compliance_publish")
    ),
    *sorted((ROOT / "libs/tables/compliance").glob("*.sql")),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bigquery_would_accept_every_statement(path: Path, language: Any) -> None:
    from zetasql.api import Analyzer
    from zetasql.types import AnalyzerOptions

    catalog = catalog_of(language, STAGED)
    parameters = [
        AnalyzerOptions.QueryParameter(name=name, type=simple_type(kind)) for name, kind in PARAMETERS.items()
    ]
    options = AnalyzerOptions(language_options=language, query_parameters=parameters)
    text = PLACEHOLDER.sub(lambda match: f"`{match[1]}`", re.sub(r"--[^\n]*", "", path.read_text("utf-8")))
    # A script's variable, and what makes a table of a query, are not the analyser's.
    text = re.sub(r"\bSET newer = ", "SELECT ", text)
    text = re.sub(r"(?<!DECLARE )\bnewer\b", "CAST(NULL AS STRING)", text)
    text = re.sub(r"CREATE (?:OR REPLACE|TEMP) TABLE .*?\bAS\b(?=\s*(?:WITH|SELECT))", "", text, flags=re.DOTALL)
    analysed = [part for part in text.split(";") if re.match(r"\s*(?:WITH|SELECT|INSERT|UPDATE|DELETE)\b", part)]
    assert analysed
    for statement in analysed:
        Analyzer(options, catalog).analyze_statement(statement)
