"""Published costs on BigQuery: one SELECT a page, on the dates of the question and within a limit of bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal

from libs.bigquery import Sql, Typed, Warehouse
from services.pipeline_executor.costs import Cost, CostQuestion, Cursor, Quarantined
from services.pipeline_executor.published import read_published


class BigQueryCostStore:
    """``costs.CostStore``. The warehouse's ``maximum_bytes_billed`` bounds what one question may read."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._query = Sql.load("services.pipeline_executor", "sql/query_costs.sql")
        self._quarantined = Sql.load("services.pipeline_executor", "sql/query_quarantine.sql")

    async def costs(self, question: CostQuestion, size: int, after: Cursor | None) -> Sequence[Cost]:
        """Groups after the cursor, the largest first."""
        rows = await read_published(
            self._warehouse,
            self._query,
            question.tenant_id,
            {
                "group_by": Typed("STRING", list(question.group_by)),
                "metric": question.metric,
                "first_date": question.first_date,
                "start_date": question.start_date,
                "end_date": question.end_date,
                "shift_days": question.shift_days,
                "shift_months": question.shift_months,
                "currency": question.currency,
                "provider": question.provider,
                "service": question.service,
                "account": question.account,
                "region": question.region,
                "charge_category": question.charge_category,
                "tag_key": question.tag[0],
                "tag_value": question.tag[1],
                "after_cost": Typed("NUMERIC", after[0] if after else None),
                "after_dimensions": after[1] if after else "",
                "after_currency": after[2] if after else "",
                "size": size,
            },
        )
        return [
            Cost(
                key=row["dimensions"],
                values=tuple(value or "" for value in json.loads(row["dimensions"])),
                currency=row["currency"],
                cost=row["cost"],
                previous_cost=row["previous_cost"],
            )
            for row in rows
        ]

    async def quarantined(self, question: CostQuestion) -> Sequence[Quarantined]:
        """The rows that are kept apart, by provider and currency."""
        rows = await read_published(
            self._warehouse,
            self._quarantined,
            question.tenant_id,
            {
                "first_date": question.first_date,
                "end_date": question.end_date,
                "provider": question.provider,
            },
        )
        return [Quarantined(row["provider"], row["currency"], row["row_count"], Decimal(row["cost"])) for row in rows]
