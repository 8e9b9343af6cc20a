"""Every ``.sql`` file of libs and services, held against Google's own parser and analyser and against STYLE.

What the emulator lets pass and BigQuery refuses is caught here: unknown columns, wrong types, a parameter nobody
declared. Statements on our own tables are analysed with the schemas of ``libs/tables``; scripts and statements on
tables that are named at run time (``{table}``) are parsed only, but for those of compliance, which are analysed whole.

One file, and so one process: compiling the analyser takes half a minute of CPU.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from google.cloud.bigquery import SchemaField

from libs import tables
from services.pipeline_executor.providers import prowler

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("libs", "services") for path in (ROOT / folder).rglob("*.sql"))
BY_NAME = {str(path.relative_to(ROOT)): path for path in FILES}
KINDS = {
    "STRING": "STRING", "BYTES": "BYTES", "BOOL": "BOOL", "BOOLEAN": "BOOL", "INT64": "INT64", "INTEGER": "INT64",
    "FLOAT64": "DOUBLE", "FLOAT": "DOUBLE", "NUMERIC": "NUMERIC", "BIGNUMERIC": "BIGNUMERIC", "DATE": "DATE",
    "TIMESTAMP": "TIMESTAMP", "DATETIME": "DATETIME", "TIME": "TIME", "JSON": "JSON",
}  # fmt: skip
PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
DECLARED = re.compile(r"@([a-z_][a-z0-9_]*)|\b(?:(ARRAY)<)?(" + "|".join(KINDS) + r")\b")
AGAIN = re.compile(
    r"\btwice\b|\bagain\b|\breads\s+only\b|\bonly\s+reads\b|\bsame\s+(?:answer|id)\b|\bnumber\s+of\s+times\b|\bjob\s+id\b",
    re.IGNORECASE,
)

every_file = pytest.mark.parametrize("path", BY_NAME.values(), ids=BY_NAME.keys())


def parts(path: Path) -> tuple[str, str]:
    """The comment a file starts with, and the SQL after it without its comments and literals."""
    lines = path.read_text("utf-8").splitlines()
    length = next(n for n, line in enumerate([*lines, ""]) if not line.startswith("--"))
    header = "\n".join(line.removeprefix("--").strip() for line in lines[:length])
    body = re.sub(r"--[^\n]*", "", "\n".join(lines[length:]))
    return header, re.sub(r"'(?:[^'\\\n]|\\.)*'", "''", body)


def declared(header: str) -> dict[str, str | None]:
    """The parameters a header names from "Parameters:" on, each with the next type that follows it."""
    found: dict[str, str | None] = {}
    waiting: list[str] = []
    for name, array, kind in DECLARED.findall(header.partition("Parameters:")[2]):
        if name:
            waiting += [name] if name not in found and name not in waiting else []
            continue
        found.update(dict.fromkeys(waiting, f"{array}<{kind}>" if array else kind))
        waiting = []
    return {**found, **dict.fromkeys(waiting)}


@every_file
def test_the_header_says_what_a_row_is_what_goes_in_and_why_twice_is_safe(path: Path) -> None:
    header, body = parts(path)
    assert header, "a comment must come first"
    first, found, _ = header.partition("Parameters:")
    assert found, "the parameters are named after 'Parameters:'"
    assert re.search(r"\b(?:result|rows?|grain)\b", first, re.IGNORECASE), "it begins with what one row is"
    assert AGAIN.search(header), "it says why running it twice is safe"
    used = set(re.findall(r"(?<!@)@([a-z_][a-z0-9_]*)", body))
    assert used == set(declared(header)), "the header names exactly the parameters that are used"


@every_file
def test_columns_are_named(path: Path) -> None:
    _, body = parts(path)
    assert not re.search(r"\bSELECT\s+(?:DISTINCT\s+|AS\s+STRUCT\s+)?\*(?!\s+FROM\s+\{)", body, re.IGNORECASE)
    given = {alias for _, alias in re.findall(r"\{([a-z_]+)\}\s+(?:AS\s+)?([a-z]\w*)", body)}
    for alias in re.findall(r"\b([a-z]\w*)\.\*", body):
        assert alias in given, f"{alias}.*: only a table named at run time may be taken whole"


@every_file
def test_datasets_are_bound_by_the_client(path: Path) -> None:
    _, body = parts(path)
    quoted = re.findall(r"`([^`]*)`", body)
    assert [name for name in quoted if re.search(r"[.-]", name)] == [], "a table that varies is a {placeholder}"
    qualified = re.findall(r"\b(?:FROM|JOIN|INTO|UPDATE|MERGE|TABLE)\s+(\w+\.\w+)", body, re.IGNORECASE)
    assert [name for name in qualified if not name.startswith("INFORMATION_SCHEMA.")] == []


@pytest.fixture(scope="session")
def compiled(request: pytest.FixtureRequest) -> None:
    """The analyser's machine code is kept in pytest's cache folder."""
    import wasmtime
    from zetasql.core import wasm_client

    folder: Path = request.config.cache.mkdir("zetasql")  # type: ignore[union-attr]

    class Kept:
        @staticmethod
        def from_file(engine: wasmtime.Engine, path: str) -> wasmtime.Module:
            kept = folder / f"{metadata.version('wasmtime')}-{Path(path).stat().st_size}.cwasm"
            try:
                return wasmtime.Module.deserialize_file(engine, str(kept))
            except wasmtime.WasmtimeError:
                module = wasmtime.Module.from_file(engine, path)
            fresh = kept.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(module.serialize())
            fresh.rename(kept)
            return module

    wasm_client.Module = Kept


@pytest.fixture(scope="session")
def language(compiled: None) -> Any:
    from zetasql.types import LanguageOptions, ProductMode

    options = LanguageOptions.maximum_features()
    options.product_mode = ProductMode.PRODUCT_EXTERNAL
    options.supported_statement_kinds = []
    return options


@pytest.fixture(scope="session")
def catalog(language: Any) -> Any:
    return catalog_of(language, {})


def catalog_of(language: Any, more: Mapping[str, Iterable[SchemaField]]) -> Any:
    """All tables of ``libs/tables``, and others."""
    from zetasql.api import CatalogBuilder, TableBuilder
    from zetasql.types import ZetaSQLBuiltinFunctionOptions

    folders = [folder.name for folder in sorted((ROOT / "libs/tables").iterdir()) if folder.is_dir()]
    known = {schema.name: schema.fields for folder in folders for schema in tables.group(folder)}
    builder = CatalogBuilder("warehouse")
    for name, columns in {**known, **more}.items():
        table = TableBuilder(name)
        for column in columns:
            table.add_column(column.name, column_type(column))
        builder.add_table(table.build())
    return builder.with_builtin_functions(ZetaSQLBuiltinFunctionOptions(language_options=language)).build()


def column_type(column: SchemaField) -> Any:
    from zetasql.api.type_factory import TypeFactory

    if column.field_type in ("RECORD", "STRUCT"):
        made = TypeFactory.create_struct_type([(inner.name, column_type(inner)) for inner in column.fields])
    else:
        made = simple_type(column.field_type)
    return TypeFactory.create_array_type(made) if column.mode == "REPEATED" else made


def simple_type(name: str) -> Any:
    from zetasql.api.type_factory import TypeFactory
    from zetasql.types import TypeKind

    if name.startswith("ARRAY<"):
        return TypeFactory.create_array_type(simple_type(name.removeprefix("ARRAY<").removesuffix(">")))
    return TypeFactory.create_simple_type(getattr(TypeKind, f"TYPE_{KINDS[name]}"))


def statements(script: Any) -> Iterable[Any]:
    return script.statement_list_node.statement_list


@every_file
def test_bigquery_would_accept_it(path: Path, language: Any, catalog: Any) -> None:
    from zetasql.api import Analyzer, Parser
    from zetasql.types import AnalyzerOptions

    text = path.read_text("utf-8")
    header, body = parts(path)
    script = Parser.parse_script_static(PLACEHOLDER.sub("placeholder", text), language)
    for statement in statements(script):
        if type(statement).__name__ in ("ASTUpdateStatement", "ASTDeleteStatement"):
            assert statement.where is not None, "BigQuery refuses an UPDATE or DELETE without WHERE"
    if len(list(statements(script))) > 1 or PLACEHOLDER.search(body) or "@@" in body:
        return
    types = declared(header)
    assert None not in types.values(), f"the header gives no type for {[n for n, kind in types.items() if not kind]}"
    parameters = [AnalyzerOptions.QueryParameter(name=name, type=simple_type(kind)) for name, kind in types.items()]
    Analyzer(AnalyzerOptions(language_options=language, query_parameters=parameters), catalog).analyze_statement(text)


def test_table_names_are_unique_and_every_column_type_is_known() -> None:
    schemas = [s for folder in (ROOT / "libs/tables").iterdir() if folder.is_dir() for s in tables.group(folder.name)]
    assert len({schema.name for schema in schemas}) == len(schemas)

    def check(fields: Iterable[SchemaField]) -> None:
        for field in fields:
            assert field.field_type in KINDS or field.fields, field.name
            check(field.fields)

    for schema in schemas:
        check(schema.fields)


def test_the_audit_trail_is_only_added_to() -> None:
    touching = {name: parts(path)[1] for name, path in BY_NAME.items() if "audit_log" in parts(path)[1]}
    writing = {name for name, body in touching.items() if re.search(r"\b(?:INSERT|UPDATE|DELETE|MERGE)\b", body)}
    assert len(writing) == 1 and len(touching) > 1, touching.keys()
    for body in touching.values():
        assert not re.search(r"\b(?:UPDATE|DELETE|MERGE|TRUNCATE|DROP|ALTER)\b", body, re.IGNORECASE)


# --- the templates of compliance: the shapes of their staging tables are written down ---

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
WHOLE = [
    *(
        SHARED / f"{name}.sql"
        for name in ("prowler", "compliance_findings", "compliance_measure", "compliance_publish")
    ),
    *sorted((ROOT / "libs/tables/compliance").glob("*.sql")),
]


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_bigquery_would_accept_every_statement_of_compliance(path: Path, language: Any) -> None:
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
