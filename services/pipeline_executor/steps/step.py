"""What every step type looks like to the engine, and what the engine hands to a step.

A step may be tried again after any failure, so each try must start from nothing it left behind: new files, a
staging table made anew.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationInfo

from libs.bigquery import Sql, TableRef, Value, rows_param
from services.pipeline_executor.providers.extraction import Extraction
from services.pipeline_executor.run_context import RunContext
from services.pipeline_executor.steps.staging import Staging

PACKAGE = "services.pipeline_executor"
PIPELINES = "pipelines"
_CURRENCIES = "reference/iso_4217.txt"
_SHARED = "shared/"


def _load_sql(value: object, info: ValidationInfo) -> Sql:
    """Reads the file that a template names: one beside it, or ``shared/…``, which templates of all providers may name.

    ``context["folder"]`` is the template's folder.
    """
    name = value.removeprefix(_SHARED) if isinstance(value, str) else ""
    if not name.endswith(".sql") or not name.removesuffix(".sql").isidentifier():
        raise ValueError("must be the name of a .sql file beside the template, or shared/ and one of pipelines/shared")
    folder = (info.context or {}).get("folder", "") if name == value else f"{PIPELINES}/shared"
    try:
        return Sql.load(PACKAGE, f"{folder}/{name}")
    except FileNotFoundError:
        raise ValueError(f"there is no file {folder}/{name}") from None


type SqlFile = Annotated[Sql, PlainValidator(_load_sql)]


def _load_files(value: object, info: ValidationInfo) -> tuple[Sql, ...]:
    """Reads one file or a list of them, each a statement of its own."""
    return tuple(_load_sql(name, info) for name in (value if isinstance(value, list) and value else [value]))


type SqlFiles = Annotated[tuple[Sql, ...], PlainValidator(_load_files)]


def _load_script(value: object, info: ValidationInfo) -> Sql:
    """Reads one file, or a list of files that are parts of one script; it is named by the first that is not shared."""
    parts = _load_files(value, info)
    own = next((part for part in parts if f"/{_SHARED}" not in part.name), parts[0])
    return Sql(own.name, "\n".join(part.text for part in parts))


type SqlScript = Annotated[Sql, PlainValidator(_load_script)]


def _load_lookup(value: object) -> str:
    """Reads a CSV file of ``reference/``, whose first lines may be comments, into a JSON array of its rows."""
    if not isinstance(value, str) or not value.endswith(".csv") or not value.removesuffix(".csv").isidentifier():
        raise ValueError("must be the name of a .csv file of reference/")
    try:
        text = importlib.resources.files(PACKAGE).joinpath(f"reference/{value}").read_text("utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no file reference/{value}") from None
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return json.dumps(list(rows), ensure_ascii=False, separators=(",", ":"))


type LookupFile = Annotated[str, PlainValidator(_load_lookup)]


@functools.cache
def currencies() -> tuple[str, ...]:
    """The currency codes of ISO 4217 that are in use."""
    text = importlib.resources.files(PACKAGE).joinpath(_CURRENCIES).read_text("utf-8")
    return tuple(line.split()[0] for line in text.splitlines() if line and not line.startswith("#"))


def _load_column(value: object) -> TableRef:
    """Reads the name of a column, which stands in SQL quoted as a table's does."""
    if not isinstance(value, str) or not value.isidentifier():
        raise ValueError("must be the name of a column")
    return TableRef(value)


type Column = Annotated[TableRef, PlainValidator(_load_column)]


class StepConfig(BaseModel):
    """Base of all steps' configs: strict, immutable, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def inputs(self) -> Mapping[str, type]:
        """Names of the steps whose output this step reads, and what it expects of each."""
        return {}


@dataclass(frozen=True, slots=True)
class StagedTable:
    """A staging table that a step has filled."""

    ref: TableRef
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a finished step moved, and what later steps may read.

    ``no_data`` and ``unchanged`` end the run with nothing published: there is nothing, or it stands published already.
    """

    rows: int | None = None
    bytes: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    output: object = None
    no_data: bool = False
    unchanged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """One try of one step: the run, the outputs of the steps before it, the staging area and a progress hook.

    ``revision`` changes with the template's text. ``report(rows, bytes)`` says how far a long step has come; it is
    cheap and may be called often, on the loop only.
    """

    run: RunContext
    provider: str
    domain: str
    template: str
    revision: str
    step_name: str
    outputs: Mapping[str, object]
    staging: Staging
    report: Callable[[int, int], None]

    def output[T](self, step: str, kind: type[T]) -> T:
        """What an earlier step left; its type was checked when the template was loaded."""
        value = self.outputs[step]
        if not isinstance(value, kind):
            raise TypeError(f"step {step} left {type(value).__name__}, not {kind.__name__}")
        return value

    def params(self, sql: Sql, extraction: Extraction | None, **others: Value) -> dict[str, Value]:
        """Values for those parameters that a template's SQL names: of the run, its own parameters, what was extracted.

        ``scopes`` is a JSON array of account_uid, region and complete.
        """
        run = self.run
        known: dict[str, Value] = {
            **run.parameters,
            "pipeline_logging_id": run.pipeline_logging_id,
            "attempt": run.attempt,
            "provider": self.provider,
            "domain": self.domain,
            "template": self.template,
            "start_date": run.start_date,
            "end_date": run.end_date,
            "currencies": list(currencies()),
            **others,
        }
        if extraction is not None:
            known["extract_start_time"] = extraction.started
            known["scopes"] = rows_param(dataclasses.asdict(scope) for scope in extraction.scopes)
        return sql.takes(known)


class Step(Protocol):
    """One step type. ``output`` is what it leaves for later steps (None: nothing)."""

    Config: ClassVar[type[StepConfig]]
    output: ClassVar[type | None]

    def __init__(self, config: Any) -> None: ...

    async def run(self, context: StepContext) -> StepResult:
        """Does the work of one try; raises ``libs.errors`` only, whose kind says whether another try may help."""
        ...
