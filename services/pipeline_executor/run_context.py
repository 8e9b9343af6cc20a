"""What one attempt of a pipeline run is given, and the shapes it reports in; shared by the engine, the steps and
the run lifecycle that calls them.

Nothing here knows gRPC or quotas. A change must keep secrets out of every repr: the credential travels only inside
``Secret``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, Protocol

from libs.bigquery import Sql, Value, Warehouse
from libs.errors import Error
from libs.tenancy import TenantId
from services.pipeline_executor.domain import Outcome, StepStatus


class Secret:
    """A decrypted credential that cannot be printed, formatted, compared or pickled; only ``reveal`` shows it."""

    __slots__ = ("_value",)

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._value = value

    def reveal(self) -> Mapping[str, Any]:
        """The credential itself, for the one call that signs with it."""
        return self._value

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


class Severity(StrEnum):
    """ERROR stops the run before anything is published; WARNING is only recorded."""

    ERROR = "ERROR"
    WARNING = "WARNING"


class CheckStatus(StrEnum):
    """How a quality check ended: WARN is a failed one that does not stop the run."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """The whole state of one step after a transition (never a delta); ``position`` is its place in the template.

    ``tries`` is 0 before the first try. ``error`` is set when the step FAILED, and while it waits for another try.
    ``details`` is small, JSON-able and free of secrets.
    """

    step_name: str
    step_type: str
    position: int
    status: StepStatus = StepStatus.PENDING
    tries: int = 0
    rows: int | None = None
    bytes: int | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    error: Error | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One quality check of one run; ``dimension`` is what it was checked for (a currency), numbers are exact text."""

    check_name: str
    check_type: str
    severity: Severity
    status: CheckStatus
    dimension: str | None
    expected: str | None
    actual: str | None
    message: str
    check_time: datetime


@dataclass(frozen=True, slots=True)
class Published:
    """How a publication ended: PUBLISHED with its rows, or SUPERSEDED by another run and nothing changed."""

    outcome: Outcome
    rows: int
    superseded_by: str | None = None


class Journal(Protocol):
    """Where a run's progress and quality results go."""

    def step(self, event: StepEvent) -> None:
        """Takes a transition; never blocks and never raises. Called on the event loop."""
        ...

    async def quality(self, results: Sequence[CheckResult]) -> None:
        """Records quality results; durable when it returns."""
        ...


class Publisher(Protocol):
    """Runs a publishing script as the fenced end of this attempt."""

    async def publish(self, sql: Sql, params: Mapping[str, Value]) -> Published:
        """Runs the script once, settles an unknown outcome by the run row, and says how it ended.

        Raises ``Aborted(RUN_FENCED)`` if this attempt is not RUNNING any more; nothing was changed then.
        """
        ...


@dataclass(frozen=True, slots=True)
class SourceEndpoints:
    """Where customers' clouds are stood in for on one machine; empty in every deployment."""

    bigquery: str | None = None
    bigquery_storage: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """Everything an attempt may use. Dates are UTC days, both inclusive.

    ``staging_dir`` belongs to this attempt alone: the engine makes it and deletes it with all that is in it.
    ``source`` is the credential's, overlaid by ``parameters.source`` of the request.
    """

    tenant_id: TenantId
    user_id: str | None
    pipeline_logging_id: str
    attempt: int
    start_date: date
    end_date: date
    warehouse: Warehouse
    publisher: Publisher
    journal: Journal
    staging_dir: Path
    now: Callable[[], datetime]
    open_credential: Callable[[], Awaitable[Secret]] = field(repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    source_endpoints: SourceEndpoints = SourceEndpoints()
