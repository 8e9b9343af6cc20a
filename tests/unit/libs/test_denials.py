"""Refusals are counted, not listed, and none is lost while the audit log is out of reach."""

from __future__ import annotations

from libs import errors
from libs.audit import AuditRecord
from libs.denials import Denials
from tests.support.fakes import Clock, MemoryAudit


async def test_what_cannot_be_written_is_counted_on() -> None:
    audit, down = MemoryAudit(), True

    async def append(record: AuditRecord) -> None:
        if down:
            raise errors.Unavailable("STORE_UNAVAILABLE", "The fake is down.")
        await audit.append(record)

    denials = Denials(append, service="tenant", now=Clock())
    denials.note(tenant_id="acme", key_id="k", reason="ROLE_TOO_LOW", source_ip="10.0.0.1", method="/a")
    await denials.flush()
    denials.note(tenant_id="acme", key_id="k", reason="ROLE_TOO_LOW", source_ip="10.0.0.2", method="/b")
    down = False
    await denials.flush()
    (record,) = audit.records
    assert record.details == {"count": 2, "first_method": "/a"} and record.source_ip == "10.0.0.1"


async def test_a_flood_of_made_up_keys_is_a_bounded_number_of_records() -> None:
    audit = MemoryAudit()
    denials = Denials(audit.append, service="tenant", now=Clock())
    for number in range(5_000):
        denials.note(tenant_id="", key_id=f"key-{number}", reason="UNKNOWN")
    await denials.flush()
    assert len(audit.records) == 501
    assert sum(record.details["count"] for record in audit.records) == 5_000


async def test_a_record_that_may_be_in_the_log_goes_there_again_as_the_same_one() -> None:
    audit = MemoryAudit()
    troubles: list[errors.Error] = [
        errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "The fake lost the reply."),
        errors.Unavailable("STORE_UNAVAILABLE", "The fake is down."),
    ]

    async def append(record: AuditRecord) -> None:
        trouble = troubles.pop(0) if troubles else None
        if trouble is None or isinstance(trouble, errors.Ambiguous):
            await audit.append(record)
        if trouble is not None:
            raise trouble

    denials = Denials(append, service="tenant", now=Clock())
    for _ in range(3):
        denials.note(tenant_id="acme", key_id="k", reason="REVOKED")
        await denials.flush()
    by_id = {record.record_id: record.details["count"] for record in audit.records}
    assert len(audit.records) == 4 and sorted(by_id.values()) == [1, 1, 1]
