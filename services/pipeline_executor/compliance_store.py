"""Published compliance findings on BigQuery: one SELECT a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from libs.bigquery import Sql, Typed, Value, Warehouse
from services.pipeline_executor.compliance import Change, ChangeCursor, ComplianceQuestion, Group, GroupCursor
from services.pipeline_executor.published import read_published


class BigQueryComplianceStore:
    """``compliance.ComplianceStore``. The warehouse's ``maximum_bytes_billed`` bounds what one question may read."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._groups = Sql.load("services.pipeline_executor", "sql/query_compliance.sql")
        self._changes = Sql.load("services.pipeline_executor", "sql/list_compliance_changes.sql")

    async def groups(self, question: ComplianceQuestion, size: int, after: GroupCursor | None) -> Sequence[Group]:
        """Groups after the cursor."""
        params = {
            **_filters(question),
            "group_by": Typed("STRING", list(question.group_by)),
            "first_day": question.first_day,
            "last_day": question.last_day,
            "after_day": Typed("DATE", after[0] if after else None),
            "after_failed": after[1] if after else 0,
            "after_dimensions": after[2] if after else "",
            "size": size,
        }
        rows = await read_published(self._warehouse, self._groups, question.tenant_id, params)
        return [_group(question, row) for row in rows]

    async def changes(self, question: ComplianceQuestion, size: int, after: ChangeCursor | None) -> Sequence[Change]:
        """Changes after the cursor."""
        params = {
            **_filters(question),
            "since": question.changed_since,
            "after_date": Typed("DATE", after[0] if after else None),
            "after_uid": after[1] if after else "",
            "size": size,
        }
        rows = await read_published(self._warehouse, self._changes, question.tenant_id, params)
        return [_change(row) for row in rows]


def _filters(question: ComplianceQuestion) -> dict[str, Value]:
    names = ("provider", "severity", "standard", "account", "status", "resource")
    return {name: getattr(question, name) for name in names}


def _group(question: ComplianceQuestion, row: Mapping[str, Any]) -> Group:
    found = zip(question.group_by, json.loads(row["dimensions"]), strict=True)
    return Group(
        key=row["dimensions"],
        values=tuple(row["day"].isoformat() if name == "day" else value or "" for name, value in found),
        day=row["day"],
        passed=row["passed"],
        failed=row["failed"],
        muted=row["muted"],
        exempt=row["exempt"],
        undecided=row["undecided"],
    )


def _change(row: Mapping[str, Any]) -> Change:
    return Change(
        finding_uid=row["finding_uid"],
        kind=row["change"],
        day=row["valid_from"],
        status=row["state"],
        previous_status=row["previous_state"] or "",
        provider=row["provider"],
        source=row["source"],
        severity=row["severity"],
        check=row["check_uid"],
        title=row["title"] or "",
        account=row["account_uid"],
        region=row["region"] or "",
        resource=row["resource_uid"],
        standards=tuple(row["standards"]),
        requirements=tuple(row["requirements"]),
        first_seen=row["first_seen"],
        current=row["is_current"],
    )
