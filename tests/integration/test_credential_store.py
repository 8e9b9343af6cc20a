"""Credentials on the emulator, sealed by the local key service: rows, races, and what may never be found in them."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.local import kms
from libs import errors
from libs.bigquery import Sql, Warehouse, build_client
from libs.tenancy import TenantId
from services.credential.cipher import EnvelopeCipher, kms_client
from services.credential.domain import Credentials
from services.credential.secret import Secret
from services.credential.states import Draft, Kind, Provider, Revoke, Status, Verdict, born, credential_id
from services.credential.store import BigQueryCredentialStore
from tests.support.credential import Judgement, KnownTenants, MemoryTrail
from tests.unit.credential.test_credential_states import put

KEY = "projects/p1/locations/global/keyRings/ring/cryptoKeys/credentials"
CANARY = "canary-5ecre7-d0-n07-5h0w"


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
async def cipher(tmp_path: Path) -> AsyncIterator[EnvelopeCipher]:
    async with kms.running(tmp_path / "keys.json", "127.0.0.1:0", create_key=KEY) as address:
        yield EnvelopeCipher(kms_client(address), KEY)


def process(warehouse: Warehouse, cipher: EnvelopeCipher, *, verdict: Verdict | None = None) -> Credentials:
    return Credentials(
        store=BigQueryCredentialStore(warehouse, now=now),
        cipher=cipher,
        tenants=KnownTenants(),
        trail=MemoryTrail(),
        validators={Provider.GCP: Judgement(verdict)},
        now=now,
    )


def draft(text: str, **more) -> Draft:
    return Draft(Provider.GCP, Kind.SERVICE_ACCOUNT, Secret.of({"private_key": f"{CANARY}-{text}"}), "reader@x", **more)


async def opened(credentials: Credentials, tenant: str, name: str = "") -> str:
    answer = await credentials.open(TenantId(tenant), Provider.GCP, name, {"run_id": "r"})
    with answer.secret as secret:
        return secret.fields()["private_key"]


async def everything(warehouse: Warehouse) -> list[dict]:
    rows = await warehouse.run(lambda: list(warehouse.client.query("SELECT * FROM tenants.tenant_cloud_credentials")))
    return [dict(row.items()) for row in rows]


async def test_a_row_comes_back_as_it_was_written(central):
    store = BigQueryCredentialStore(central, now=now)
    time = datetime(2025, 11, 17, 12, 30, 59, 123456, tzinfo=UTC)
    first = put(1, tenant_id="roundtrip", source={"dataset_id": "d"}, expire_time=time + timedelta(hours=1))
    row = born(first, time)
    await store.add(row, 1)
    assert await store.read(row.credential_id) == row
    second = await store.change(row.credential_id, put(2, tenant_id="roundtrip", source={"quote": 'a"\\ü\n'}))
    stored = await store.read(row.credential_id)
    assert stored == replace(second, version=2)
    assert stored.secrets[1].destroy_time is not None
    gone = await store.change(row.credential_id, Revoke("roundtrip"))
    assert await store.read(row.credential_id) == replace(gone, version=3)
    columns = next(r for r in await everything(central) if r["credential_id"] == row.credential_id)
    assert json.loads(columns["secrets"])["versions"] == [] and columns["kek_version"] is None
    assert await store.read("no-such-id") is None


async def test_an_attempt_is_made_once_by_whomever(central, bigquery_emulator, project_id):
    other = Warehouse(build_client(project_id, endpoint=bigquery_emulator.rest))
    stores = [BigQueryCredentialStore(w, now=now) for w in (central, other)]
    row = born(put(1, tenant_id="mutex"), now())
    await asyncio.gather(*(stores[n % 2].add(replace(row, display=f"d{n}"), 1) for n in range(8)))
    assert len([r for r in await everything(central) if r["credential_id"] == row.credential_id]) == 1
    other.close()


async def test_a_failed_attempt_is_told_from_one_that_was_never_made(central):
    store = BigQueryCredentialStore(central, now=now)
    row = born(put(1, tenant_id="burnt"), now())
    failing = {"dataset": "tenants", "job_id": f"credential-{row.credential_id}-1"}
    with pytest.raises(errors.Error):
        await central.execute(Sql("failing", "SELECT ERROR('no')"), **failing)
    with pytest.raises(errors.Aborted):
        await store.add(row, 1)
    assert await store.read(row.credential_id) is None
    await store.add(row, 2)
    assert await store.read(row.credential_id) == row


async def test_a_failure_of_our_own_is_told_as_it_is(central):
    nowhere = BigQueryCredentialStore(central, now=now)
    broken = replace(born(put(1, tenant_id="broken"), now()), create_time=None)
    with pytest.raises(errors.Error) as failure:
        await nowhere.add(broken, 1)
    assert not isinstance(failure.value, errors.Aborted | errors.Unavailable)


async def test_posting_at_once_from_two_processes_makes_one_credential(central, cipher, bigquery_emulator, project_id):
    other = Warehouse(build_client(project_id, endpoint=bigquery_emulator.rest))
    processes = [process(w, cipher) for w in (central, other)]
    tenants = [TenantId(f"racer_{n}") for n in range(4)]

    async def post(n: int):
        return await processes[n % 2].create(tenants[n % 4], draft(str(n)), name="", source=None)

    answers = await asyncio.gather(*(post(n) for n in (*range(8), *range(1, 9))))
    assert [a.updated for a in answers].count(False) == len(tenants)
    rows = [r for r in await everything(central) if r["tenant_id"].startswith("racer_")]
    assert len(rows) == len(tenants)
    assert all(json.loads(r["secrets"])["last_number"] == 4 for r in rows)
    for tenant in tenants:
        assert (await opened(processes[0], tenant)).startswith(CANARY)
    other.close()


async def test_ciphertext_moved_in_the_table_does_not_open(central, cipher):
    credentials = process(central, cipher)
    for tenant in ("victim", "thief"):
        await credentials.create(TenantId(tenant), draft(tenant), name="", source=None)
    victim, thief = (credential_id(t, Provider.GCP, "default") for t in ("victim", "thief"))
    await central.run(
        lambda: central.client.query(
            "UPDATE tenants.tenant_cloud_credentials SET secrets = (SELECT v.secrets"
            f" FROM tenants.tenant_cloud_credentials AS v WHERE v.credential_id = '{victim}')"
            f" WHERE credential_id = '{thief}'"
        ).result()
    )
    with pytest.raises(errors.Internal) as refused:
        await opened(credentials, "thief")
    assert refused.value.reason == "SECRET_UNREADABLE"
    assert credentials._trail.events[-1].outcome == "FAILED"
    assert await opened(credentials, "victim") == f"{CANARY}-victim"


async def test_no_row_shows_a_secret(central, cipher):
    credentials = process(central, cipher)
    row = (await credentials.create(TenantId("quiet"), draft("x"), name="", source={"dataset_id": "d"})).credential
    await credentials.validate(TenantId("quiet"), row.credential_id)
    text = repr(await everything(central)) + repr(row) + repr(credentials._trail.events)
    assert CANARY not in text


async def test_pages_of_one_tenant(central):
    store = BigQueryCredentialStore(central, now=now)
    for name in ("b", "a", "C", "d"):
        await store.add(born(put(1, tenant_id="pager", name=name), now()), 1)
    await store.add(born(put(1, tenant_id="pager", name="z", provider=Provider.AWS), now()), 1)
    await store.add(born(put(1, tenant_id="pager_two", name="a"), now()), 1)

    async def names(**more):
        rows = await store.list("pager", **({"provider": "", "after": None, "limit": 10} | more))
        return [f"{row.provider}/{row.name}" for row in rows]

    assert await names() == ["AWS/z", "GCP/C", "GCP/a", "GCP/b", "GCP/d"]
    assert await names(provider="GCP", limit=2) == ["GCP/C", "GCP/a"]
    assert await names(after=("AWS", "z"), limit=2) == ["GCP/C", "GCP/a"]
    assert await names(after=("GCP", "b")) == ["GCP/d"]
    assert await names(provider="AZURE") == []


async def test_what_is_due(central):
    store = BigQueryCredentialStore(central, now=now)
    time = now()
    ages = {"fresh": timedelta(minutes=1), "stale": timedelta(hours=25), "hours": timedelta(hours=2)}

    async def made(name: str, age: timedelta, verdict: Verdict, number: int = 1):
        row = born(put(1, verdict, tenant_id="due", name=name), time - age)
        await store.add(row, 1)
        return row

    await made("valid_fresh", ages["fresh"], Verdict(Status.VALID))
    await made("valid_stale", ages["stale"], Verdict(Status.VALID))
    await made("pending_hours", ages["hours"], Verdict(Status.PENDING))
    await made("pending_fresh", ages["fresh"], Verdict(Status.PENDING))
    await made("never_asked", ages["stale"], Verdict(Status.PENDING, asked=False))
    older = await made("older_version", ages["fresh"], Verdict(Status.VALID))
    await store.change(older.credential_id, put(2, tenant_id="due", name="older_version"))
    gone = await made("revoked", ages["stale"], Verdict(Status.VALID))
    await store.change(gone.credential_id, Revoke("due"))

    async def due(at: datetime, key_version: str = "kek/1") -> set[str]:
        rows = await store.list_due(
            at, key_version=key_version, pending_age=timedelta(hours=1), valid_age=timedelta(hours=24), limit=500
        )
        return {row.name for row in rows if row.tenant_id == "due"}

    assert await due(time) == {"valid_stale", "pending_hours"}
    assert await due(time, "kek/2") >= {"valid_fresh", "never_asked", "older_version"}
    assert "revoked" not in await due(time, "kek/2")
    assert "older_version" in await due(time + timedelta(days=7, hours=1))
