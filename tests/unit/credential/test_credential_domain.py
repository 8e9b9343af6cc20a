"""The use cases with everything around them faked: what is stored, what is refused, what is on the trail."""

import asyncio
import copy
import pickle
from dataclasses import replace
from datetime import timedelta

import pytest

from libs import errors
from libs.tenancy import TenantId
from services.credential.domain import Credentials
from services.credential.secret import Secret
from services.credential.states import (
    KEPT_FOR,
    Draft,
    Kind,
    Provider,
    Prune,
    Status,
    Verdict,
    credential_id,
)
from tests.support.credential import Judgement, KnownTenants, MemoryCredentialStore, MemoryTrail, OpenCipher
from tests.support.fakes import Clock, Faults

ACME, GLOBEX = TenantId("acme"), TenantId("globex")
CANARY = "canary-5ecre7-d0-n07-5h0w"
REFUSED = Verdict(Status.INVALID, "The key is disabled.")
DOWN = Verdict(Status.PENDING, "BigQuery did not answer.")


class World:
    """One process of the service with its surroundings."""

    def __init__(self, faults: Faults | None = None, seed: int = 0) -> None:
        self.clock = Clock()
        self.store = MemoryCredentialStore(now=self.clock, faults=faults, seed=seed)
        self.cipher = OpenCipher()
        self.tenants = KnownTenants()
        self.trail = MemoryTrail()
        self.google = Judgement()
        self.amazon = Judgement()
        self.credentials = self.process(self.store)

    def process(self, store: MemoryCredentialStore) -> Credentials:
        return Credentials(
            store=store,
            cipher=self.cipher,
            tenants=self.tenants,
            trail=self.trail,
            validators={Provider.GCP: self.google, Provider.AWS: self.amazon},
            now=self.clock,
            validation_timeout=timedelta(milliseconds=50),
        )

    async def post(self, tenant=ACME, secret="one", name="", source=None, **more):
        with draft(secret, **more) as it:
            return await self.credentials.create(tenant, it.draft, name=name, source=source)

    async def opened(self, tenant=ACME, name="") -> str:
        opened = await self.credentials.open(tenant, Provider.GCP, name, {"run_id": "r1"})
        with opened.secret:
            return opened.secret.fields()["private_key"]


class draft:
    def __init__(self, secret="one", *, provider=Provider.GCP, kind=Kind.SERVICE_ACCOUNT, expire_time=None):
        content = Secret.of({"private_key": f"{CANARY}-{secret}"})
        self.draft = Draft(provider, kind, content, "reader@x", expire_time)

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.draft.secret.wipe()


@pytest.fixture
def world() -> World:
    return World()


async def test_a_first_secret_is_created_and_a_second_one_updates_it(world):
    first = await world.post(secret="one", source={"dataset_id": "d"})
    assert (first.updated, first.tables_created, first.credential.number) == (False, True, 1)
    assert first.credential.status is Status.VALID
    second = await world.post(secret="two")
    assert (second.updated, second.tables_created, second.credential.number) == (True, False, 2)
    assert second.credential.credential_id == first.credential.credential_id
    assert second.credential.source == {"dataset_id": "d"}, "a source that is not given stays"
    assert await world.opened() == f"{CANARY}-two"
    assert world.trail.actions() == [
        ("credential.create", "OK"),
        ("credential.update", "OK"),
        ("credential.open", "OK"),
    ]


async def test_names_and_tenants_do_not_meet(world):
    ids = {
        (await world.post(tenant, name=name)).credential.credential_id
        for tenant in (ACME, GLOBEX)
        for name in ("", "prod", "Prod")
    }
    assert len(ids) == 6
    assert (await world.post(name="default")).updated
    assert len(await world.credentials.list(ACME, limit=10)) == 3


async def test_another_tenant_s_credential_is_not_there(world):
    cid = (await world.post()).credential.credential_id
    attempts = [
        world.credentials.get(GLOBEX, cid),
        world.credentials.delete(GLOBEX, cid),
        world.credentials.validate(GLOBEX, cid),
        world.credentials.update_source(GLOBEX, cid, {}),
        world.credentials.check(GLOBEX, Provider.GCP, ""),
        world.credentials.open(GLOBEX, Provider.GCP, "", {}),
        world.credentials.get(ACME, "no-such-id"),
    ]
    answers = [repr(error) for error in await asyncio.gather(*attempts, return_exceptions=True)]
    assert set(answers) == {"NotFound('CREDENTIAL_NOT_FOUND', 'Credential not found.')"}
    assert await world.opened() == f"{CANARY}-one"


async def test_a_row_moved_to_another_tenant_does_not_open(world):
    mine = (await world.post(ACME)).credential
    theirs = (await world.post(GLOBEX)).credential
    rows = world.store.table.rows
    rows[theirs.credential_id] = replace(rows[theirs.credential_id], secrets=mine.secrets)
    with pytest.raises(errors.Internal) as refused:
        await world.opened(GLOBEX)
    assert refused.value.reason == "SECRET_UNREADABLE"
    assert world.trail.events[-1].outcome == "FAILED"
    assert world.trail.events[-1].reason == "SECRET_UNREADABLE"


async def test_a_refused_secret_changes_nothing(world):
    await world.post(secret="good")
    world.google.verdict = REFUSED
    with pytest.raises(errors.FailedPrecondition) as refused:
        await world.post(secret="bad")
    assert refused.value.reason == "CREDENTIAL_REFUSED"
    assert "The key is disabled." in refused.value.message and CANARY not in refused.value.message
    assert await world.opened() == f"{CANARY}-good"
    with pytest.raises(errors.FailedPrecondition):
        await world.post(GLOBEX, secret="bad")
    assert len(world.store.table.rows) == 1
    assert world.trail.actions().count(("credential.create", "DENIED")) == 2


@pytest.mark.parametrize("how", ["says so", "hangs"])
async def test_a_secret_nobody_can_judge_is_pending_and_may_be_used(world, how):
    world.google.verdict, world.google.hang = DOWN, how == "hangs"
    created = await world.post()
    assert created.credential.status is Status.PENDING
    assert created.credential.status_reason
    assert (await world.credentials.check(ACME, Provider.GCP, "")).status is Status.PENDING
    assert await world.opened() == f"{CANARY}-one"


async def test_a_provider_nobody_can_ask_about_stays_pending(world):
    created = await world.post(provider=Provider.AZURE, kind=Kind.SAS)
    assert (created.credential.status, created.credential.last_validated_time) == (Status.PENDING, None)
    cid = created.credential.credential_id
    assert (await world.credentials.validate(ACME, cid)).status is Status.PENDING


async def test_a_role_that_does_not_trust_us_yet_is_told_its_external_id(world):
    world.amazon.verdict = Verdict(Status.INVALID, "Its trust policy does not name the external id.")
    created = await world.post(provider=Provider.AWS, kind=Kind.ROLE)
    row = created.credential
    assert (row.status, row.external_id) == (Status.PENDING, row.credential_id)
    assert world.amazon.asked[0][3] == row.external_id

    async def validated(verdict):
        world.amazon.verdict = verdict
        return (await world.credentials.validate(ACME, row.credential_id)).status

    refused = world.amazon.verdict
    assert await validated(refused) is Status.PENDING, "its owner may still be at it"
    moved = await world.credentials.update_source(ACME, row.credential_id, {"bucket": "b"})
    assert (moved.status, moved.source) == (Status.PENDING, {"bucket": "b"})
    assert await validated(Verdict(Status.VALID)) is Status.VALID
    assert await validated(refused) is Status.INVALID, "it has trusted us once"
    assert (await world.post(GLOBEX, provider=Provider.AWS, kind=Kind.ROLE)).credential.external_id != row.external_id


async def test_a_role_that_lets_us_in_without_its_external_id_is_refused(world):
    open_to_all = Verdict(Status.INVALID, "It takes any external id.", final=True)
    world.amazon.verdict = open_to_all
    with pytest.raises(errors.FailedPrecondition) as refused:
        await world.post(provider=Provider.AWS, kind=Kind.ROLE)
    assert refused.value.reason == "CREDENTIAL_REFUSED" and not world.store.table.rows
    world.amazon.verdict = DOWN
    row = (await world.post(provider=Provider.AWS, kind=Kind.ROLE)).credential
    world.amazon.verdict = open_to_all
    assert (await world.credentials.validate(ACME, row.credential_id)).status is Status.INVALID


async def test_a_missing_tenant_is_told_before_anything_is_stored(world):
    world.tenants.failure = errors.NotFound("TENANT_NOT_FOUND", "Tenant not found.")
    with pytest.raises(errors.NotFound):
        await world.post()
    assert not world.store.table.rows and not world.trail.events


async def test_validation_follows_the_provider_and_stands_when_it_is_silent(world):
    cid = (await world.post()).credential.credential_id

    async def validated(verdict):
        world.clock.advance(seconds=60)
        world.google.verdict = verdict
        return await world.credentials.validate(ACME, cid)

    silent = await validated(DOWN)
    assert (silent.status, silent.status_reason) == (Status.VALID, DOWN.reason)
    refused = await validated(REFUSED)
    assert (refused.status, refused.status_reason) == (Status.INVALID, REFUSED.reason)
    assert refused.last_validated_time == world.clock()
    with pytest.raises(errors.FailedPrecondition) as invalid:
        await world.opened()
    assert invalid.value.reason == "CREDENTIAL_INVALID"
    assert (await validated(DOWN)).status is Status.INVALID
    healed = await validated(Verdict(Status.VALID))
    assert (healed.status, healed.status_reason) == (Status.VALID, "")
    assert await world.opened() == f"{CANARY}-one"


async def test_a_version_that_never_worked_gives_way_to_the_one_before(world):
    cid = (await world.post(secret="good")).credential.credential_id
    world.google.by_secret = {"bad": DOWN}
    updated = await world.post(secret="bad")
    assert (updated.credential.status, updated.credential.number) == (Status.PENDING, 2)
    world.google.by_secret = {"bad": REFUSED}
    world.clock.advance(seconds=60)
    row = await world.credentials.validate(ACME, cid)
    assert (row.status, row.number, len(row.secrets)) == (Status.VALID, 1, 1)
    assert row.current.destroy_time is None
    assert await world.opened() == f"{CANARY}-good"
    assert (await world.post(secret="third")).credential.number == 3


async def test_older_versions_are_destroyed_in_time(world):
    cid = (await world.post(secret="one")).credential.credential_id
    for secret in ("two", "three"):
        await world.post(secret=secret)
    row = await world.credentials.get(ACME, cid)
    assert [s.number for s in row.secrets] == [3, 2]
    world.clock.advance(KEPT_FOR)
    await world.store.change(cid, Prune(ACME))
    assert [s.number for s in world.store.table.rows[cid].secrets] == [3]


async def test_an_expired_secret_is_refused_and_shown_invalid(world):
    end = world.clock() + timedelta(hours=1)
    cid = (await world.post(expire_time=end)).credential.credential_id
    assert (await world.credentials.get(ACME, cid)).expire_time == end
    await world.opened()
    world.clock.advance(timedelta(hours=1))
    for use in (world.opened(), world.credentials.check(ACME, Provider.GCP, "")):
        with pytest.raises(errors.FailedPrecondition) as refused:
            await use
        assert refused.value.reason == "CREDENTIAL_EXPIRED"
    assert (await world.credentials.get(ACME, cid)).status is Status.INVALID
    assert world.trail.actions()[-1] == ("credential.open", "DENIED")


async def test_deleting_destroys_the_secret_for_good_and_twice_is_harmless(world):
    cid = (await world.post(secret="one")).credential.credential_id
    await world.post(secret="two")
    for _ in range(2):
        row = await world.credentials.delete(ACME, cid)
        assert (row.status, row.secrets, row.number) == (Status.REVOKED, (), 2)
    with pytest.raises(errors.FailedPrecondition) as refused:
        await world.opened()
    assert refused.value.reason == "CREDENTIAL_REVOKED"
    for use in (world.credentials.validate(ACME, cid), world.credentials.update_source(ACME, cid, {})):
        with pytest.raises(errors.FailedPrecondition):
            await use
    again = await world.post(secret="three")
    assert (again.updated, again.credential.number, again.credential.status) == (False, 3, Status.VALID)
    assert await world.opened() == f"{CANARY}-three"


async def test_the_source_is_replaced_and_asked_about(world):
    cid = (await world.post(source={"dataset_id": "a", "table_id": "t"})).credential.credential_id
    row = await world.credentials.update_source(ACME, cid, {"dataset_id": "b"})
    assert (row.source, row.status) == ({"dataset_id": "b"}, Status.VALID)
    assert world.google.asked[-1][2] == {"dataset_id": "b"}
    world.google.verdict = REFUSED
    with pytest.raises(errors.FailedPrecondition):
        await world.credentials.update_source(ACME, cid, {"dataset_id": "c"})
    assert (await world.credentials.get(ACME, cid)).source == {"dataset_id": "b"}
    world.google.verdict = DOWN
    assert (await world.credentials.update_source(ACME, cid, {"dataset_id": "d"})).status is Status.PENDING


async def test_shredding_leaves_a_tenant_nothing_and_others_everything(world):
    for name in ("a", "b", "c"):
        await world.post(ACME, name=name)
    await world.post(GLOBEX)
    assert await world.credentials.shred(ACME) == 3
    assert await world.credentials.shred(ACME) == 0
    assert all(not row.secrets for row in world.store.table.rows.values() if row.tenant_id == ACME)
    assert await world.opened(GLOBEX) == f"{CANARY}-one"


async def test_what_is_posted_while_the_tenant_leaves_does_not_stay(world):
    world.tenants.offboarding.add(ACME)
    with pytest.raises(errors.FailedPrecondition) as refused:
        await world.post()
    assert refused.value.reason == "TENANT_OFFBOARDING"
    assert [row.secrets for row in world.store.table.rows.values()] == [()]
    assert world.trail.actions() == [("credential.create", "OK"), ("credential.shred", "OK")]


async def test_nothing_is_opened_without_a_record(world):
    await world.post()
    world.trail.failure = errors.Unavailable("STORE_BUSY", "down")
    with pytest.raises(errors.Unavailable):
        await world.opened()
    world.trail.failure = None
    await world.opened()
    details = world.trail.events[-1].details
    assert details == {"run_id": "r1", "secret_version": "1"}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("faults", [Faults(), Faults(conflict=0.4)], ids=["calm", "conflicts"])
async def test_posting_at_once_from_three_processes_makes_one_credential(faults, seed):
    world = World(faults, seed)
    processes = [world.process(world.store.replica(now=world.clock)) for _ in range(3)]

    async def post(n):
        with draft(str(n)) as it:
            return await processes[n % 3].create(ACME, it.draft, name="", source=None)

    answers = await asyncio.gather(*(post(n) for n in range(24)))
    assert [a.updated for a in answers].count(False) == 1
    row = world.store.table.rows[credential_id(ACME, Provider.GCP, "default")]
    assert row.last_number == 24 and len(row.secrets) == 2
    assert len(world.store.table.rows) == 1
    assert [e.action for e in world.trail.events].count("credential.create") == 1


@pytest.mark.parametrize("seed", range(10))
async def test_lost_replies_neither_double_a_version_nor_bring_one_back(seed):
    world = World(Faults(lost_reply=0.3, partial=0.2), seed)
    stored = 0
    for n in range(12):
        try:
            stored += (await world.post(secret=str(n))).credential is not None
        except errors.Ambiguous:
            stored += 1
    row = world.store.table.rows[credential_id(ACME, Provider.GCP, "default")]
    assert row.last_number == stored == 12
    world.store.table.faults.lost_reply = 0
    assert await world.opened() == f"{CANARY}-11"


async def test_a_client_that_goes_away_does_not_part_a_change_from_its_record(world):
    cid = (await world.post()).credential.credential_id
    call = asyncio.create_task(world.credentials.delete(ACME, cid))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await world.credentials.close()
    assert not world.store.table.rows[cid].secrets
    assert world.trail.actions()[-1] == ("credential.delete", "OK")


def test_a_secret_does_not_show_itself():
    with Secret.of({"private_key": CANARY}) as secret:
        shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", "%s" % secret, repr(draft().draft)]  # noqa: UP031
        shown.append(repr({"k": [secret]}))
        assert not any(CANARY in text for text in shown)
        for copier in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                copier(secret)
        buffer = secret.reveal()
    assert not any(buffer)
    with pytest.raises(ValueError):
        secret.reveal()
    with pytest.raises(ValueError):
        secret.fields()
