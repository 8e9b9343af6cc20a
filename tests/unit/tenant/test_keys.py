"""API keys: their form, what the ring says of them, their rotation and end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import Aborted, Error, FailedPrecondition, InvalidArgument, NotFound, Unauthenticated, Unavailable
from libs.tenancy import Caller, Role
from services.tenant.keys import MAX_LIVE_KEYS, REFRESH, STALE, ApiKey, KeyRefused, KeyState, NewKey, new_key, parse
from tests.support.fakes import Clock
from tests.support.tenant_world import ADMIN_KEY, Disk, Process, application, stays
from tests.support.virtual_time import run

type Scenario = Callable[[Disk, Process], Awaitable[None]]


def world(scenario: Scenario) -> None:
    """Runs a scenario on a disk with one process whose keys are fresh."""

    async def begin() -> None:
        disk = Disk(Clock())
        process = Process(disk)
        await process.ring.refresh()
        await scenario(disk, process)

    run(begin())


async def make(process: Process, tenant_id: str = "acme", role: Role = Role.ADMIN, **more: object) -> NewKey:
    arguments = {"name": "ci", "expires_at": None, "created_by": "admin", "must_stay": stays, **more}
    return await process.keys.create(tenant_id, role=role, **arguments)  # type: ignore[arg-type]


async def cause(process: Process, text: str) -> str:
    with pytest.raises(KeyRefused) as info:
        await process.ring.authenticate(text)
    assert (info.value.reason, info.value.message) == ("API_KEY_INVALID", "The API key is not valid.")
    return info.value.cause


# ---------------------------------------------------------------- the form


def test_a_key_has_a_prefix_its_environment_an_id_a_secret_and_a_checksum() -> None:
    key = new_key("live")
    prefix, environment, key_id, secret, checksum = key.text().split("_")
    assert (prefix, environment, key_id, secret) == ("cvg", "live", key.key_id, key.secret)
    assert (len(key_id), len(secret), len(checksum)) == (12, 43, 6)
    assert parse(key.text()) == key
    assert key.secret not in repr(key)


def test_every_secret_is_different_and_is_stored_as_its_hash_only() -> None:
    keys = [new_key("test") for _ in range(100)]
    assert len({key.secret for key in keys}) == len({key.key_id for key in keys}) == 100
    assert all(len(key.secret_hash) == 64 and key.secret not in key.secret_hash for key in keys)


@given(st.data())
def test_a_key_with_any_one_character_changed_is_malformed(data: st.DataObject) -> None:
    text = new_key("test").text()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(min_codepoint=32, max_codepoint=126).filter(lambda c: c != text[place]))
    changed = text[:place] + other + text[place + 1 :]
    assert parse(changed) is None or changed.startswith("cvg_live_")


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize("change", [str.upper, str.strip, lambda text: text + "\n", lambda text: " " + text])
def test_a_key_is_taken_to_the_letter(change: Callable[[str], str]) -> None:
    text = new_key("test").text()
    assert change(text) == text or parse(change(text)) is None


# ---------------------------------------------------------------- the ring


def test_a_live_key_says_whose_it_is() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        made = await make(process, role=Role.RUNNER)
        who = await process.ring.authenticate(made.text)
        assert who == Caller(Role.RUNNER, tenant_id="acme", key_id=made.key.api_key_id)
        stored = disk.keys[made.key.api_key_id]
        assert made.text not in repr(stored) and made.text.split("_")[3] not in repr(stored)

    world(scenario)


def test_an_answer_is_good_for_a_second_and_never_longer_than_what_it_stands_on() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        lasting = await make(process)
        expiring = await make(process, expires_at=disk.clock() + timedelta(seconds=16))
        await process.ring.refresh()
        known = [await process.ring.authenticate(each.text) for each in (lasting, expiring)]
        assert [process.ring.good_for(who) for who in known] == [timedelta(seconds=1)] * 2
        disk.clock.advance(timedelta(seconds=14.75))
        assert [process.ring.good_for(who) for who in known] == [timedelta(seconds=0.25)] * 2
        await process.ring.refresh()
        assert process.ring.good_for(known[0]) == timedelta(seconds=1)
        assert process.ring.good_for(known[1]) <= timedelta(seconds=1)
        disk.clock.advance(timedelta(seconds=1))
        assert process.ring.good_for(known[1]) <= timedelta(seconds=0.25)
        disk.clock.advance(timedelta(seconds=20))
        assert [process.ring.good_for(who) for who in known] == [timedelta(0)] * 2
        assert process.ring.good_for(Caller(Role.RUNNER, tenant_id="acme", key_id="nobody")) == timedelta(0)

    world(scenario)


def test_the_platform_admins_key_needs_no_store() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        disk.down = True
        disk.clock.advance(timedelta(hours=1))
        assert await process.ring.authenticate(ADMIN_KEY) == Caller(Role.PLATFORM_ADMIN, key_id="admin")
        for wrong in (ADMIN_KEY + "x", ADMIN_KEY[:-1], ADMIN_KEY.upper(), ""):
            with pytest.raises(Unauthenticated):
                await process.ring.authenticate(wrong)

    world(scenario)


def test_what_is_not_live_is_refused_in_the_same_words_for_different_causes() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        made = await make(process)
        expiring = await make(process, expires_at=disk.clock() + timedelta(minutes=1))
        revoked = await make(process)
        await process.keys.revoke("acme", revoked.key.api_key_id)
        forged = new_key("test")
        wrong_secret = type(forged)("test", made.key.api_key_id, forged.secret).text()
        disk.clock.advance(timedelta(minutes=1))
        await process.ring.refresh()
        assert await cause(process, "nonsense") == "MALFORMED"
        assert await cause(process, new_key("live").text()) == "MALFORMED"
        assert await cause(process, forged.text()) == "UNKNOWN"
        assert await cause(process, wrong_secret) == "WRONG_SECRET"
        assert await cause(process, expiring.text) == "EXPIRED"
        assert await cause(process, revoked.text) == "REVOKED"
        with pytest.raises(KeyRefused) as refused:
            await process.ring.authenticate(wrong_secret)
        assert refused.value.tenant_id == "acme", "its owner is told that somebody guesses"

    world(scenario)


def test_a_key_made_on_another_replica_opens_after_one_shared_refresh() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        other = Process(disk)
        made = await make(other)
        loads = len(disk.key_loads)
        callers = await asyncio.gather(*(process.ring.authenticate(made.text) for _ in range(200)))
        assert {caller.tenant_id for caller in callers} == {"acme"}
        assert len(disk.key_loads) == loads + 1

    world(scenario)


def test_a_flood_of_unknown_keys_costs_at_most_a_statement_a_second() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        made = await make(process)
        loads, began = len(disk.key_loads), disk.clock()
        for _ in range(30):
            forged = [new_key("test").text() for _ in range(100)]
            outcomes = await asyncio.gather(
                *(process.ring.authenticate(text) for text in forged), return_exceptions=True
            )
            assert all(isinstance(outcome, KeyRefused) for outcome in outcomes)
            assert (await process.ring.authenticate(made.text)).tenant_id == "acme"
        seconds = (disk.clock() - began).total_seconds()
        assert len(disk.key_loads) - loads <= seconds + 1
        assert all((b - a).total_seconds() >= 1 for a, b in zip(disk.key_loads, disk.key_loads[1:], strict=False))

    world(scenario)


def test_one_wrong_key_in_a_loop_and_malformed_ones_cost_nothing() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        forged = new_key("test").text()
        await cause(process, forged)
        loads = len(disk.key_loads)
        for _ in range(100):
            assert await cause(process, forged) == "UNKNOWN"
            await cause(process, forged[:-1] + "_")
        assert len(disk.key_loads) == loads
        disk.clock.advance(REFRESH)
        await cause(process, forged)
        assert len(disk.key_loads) == loads + 1

    world(scenario)


def test_a_store_out_of_reach_for_fifteen_seconds_closes_the_door() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        made = await make(process)
        await process.ring.refresh()
        disk.down = True
        while process.ring.fresh:
            assert (await process.ring.authenticate(made.text)).tenant_id == "acme"
            with pytest.raises(Unavailable):
                await process.ring.authenticate(new_key("test").text())
            disk.clock.advance(seconds=3)
        with pytest.raises(Unavailable) as info:
            await process.ring.authenticate(made.text)
        assert info.value.reason == "KEYS_UNKNOWN" and info.value.retry_after
        assert await cause(process, "malformed") == "MALFORMED"
        disk.down = False
        await process.ring.refresh()
        assert (await process.ring.authenticate(made.text)).tenant_id == "acme"

    world(scenario)


def test_a_reading_that_fails_and_began_before_a_key_was_made_does_not_shut_it_out() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        load, fails = process.ring._store.load, asyncio.Event()

        async def slow(dead_since: datetime) -> Any:
            await fails.wait()
            raise Unavailable("STORE_UNAVAILABLE", "It took too long.")

        disk.clock.advance(REFRESH)
        process.ring._store.load = slow  # type: ignore[method-assign]
        under_way = asyncio.create_task(process.ring.refresh())
        await asyncio.sleep(0)
        made = await make(process)
        first_use = asyncio.create_task(process.ring.authenticate(made.text))
        await asyncio.sleep(0)
        process.ring._store.load = load  # type: ignore[method-assign]
        fails.set()
        assert (await first_use).tenant_id == "acme"
        with pytest.raises(Unavailable):
            await under_way

    world(scenario)


def test_before_the_first_reading_nothing_is_opened() -> None:
    async def scenario() -> None:
        process = Process(Disk(Clock()))
        with pytest.raises(Unavailable):
            await process.ring.authenticate(new_key("test").text())

    run(scenario())


def test_a_revoked_key_is_dead_on_every_replica_within_fifteen_seconds() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        other = Process(disk)
        await other.ring.refresh()
        made = await make(process)
        assert await other.ring.authenticate(made.text)
        await process.keys.revoke("acme", made.key.api_key_id)
        revoked_at = disk.clock()
        assert await cause(process, made.text) == "REVOKED", "dead at once where it was revoked"
        while True:
            disk.clock.advance(REFRESH)
            await other.ring.refresh()
            try:
                await other.ring.authenticate(made.text)
            except KeyRefused:
                break
        assert disk.clock() - revoked_at <= STALE

    world(scenario)


def test_a_replica_cut_off_from_the_store_stops_accepting_a_revoked_key_too() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        other = Process(disk)
        made = await make(process)
        await other.ring.refresh()
        await process.keys.revoke("acme", made.key.api_key_id)
        disk.down = True
        disk.clock.advance(STALE + timedelta(seconds=1))
        with pytest.raises(Unavailable):
            await other.ring.authenticate(made.text)

    world(scenario)


def test_a_reading_that_began_before_a_revocation_does_not_bring_the_key_back() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        made = await make(process)
        await process.ring.refresh()
        disk.clock.advance(REFRESH)
        reading = asyncio.ensure_future(process.ring.refresh())
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the snapshot is taken, its reply is on the way
        await process.keys.revoke("acme", made.key.api_key_id)
        await reading
        assert await cause(process, made.text) == "REVOKED"

    world(scenario)


def test_last_use_is_written_off_the_request_path_and_never_backwards() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        made = await make(process)
        await process.ring.refresh()
        await process.ring.authenticate(made.text)
        assert disk.keys[made.key.api_key_id].last_used_at is None
        disk.down = True
        await process.keys.flush_used()
        assert made.key.api_key_id in process.ring.used
        disk.down = False
        await process.keys.flush_used()
        assert disk.keys[made.key.api_key_id].last_used_at == disk.clock()
        assert process.ring.used == {}

    world(scenario)


# ---------------------------------------------------------------- their life


def test_a_key_may_end_by_itself_but_not_in_the_past() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        made = await make(process, expires_at=disk.clock() + timedelta(days=1))
        assert made.key.state(disk.clock()) is KeyState.ACTIVE
        assert made.key.state(disk.clock() + timedelta(days=1)) is KeyState.EXPIRED
        with pytest.raises(InvalidArgument):
            await make(process, expires_at=disk.clock())

    world(scenario)


def test_a_tenant_has_a_bounded_number_of_live_keys() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        for _ in range(MAX_LIVE_KEYS):
            await make(process)
        await process.ring.refresh()
        with pytest.raises(FailedPrecondition):
            await make(process)
        await make(process, "other")
        await process.keys.revoke("acme", next(iter(disk.keys)))
        await process.ring.refresh()
        await make(process)

    world(scenario)


@pytest.mark.parametrize("overlap", [timedelta(), timedelta(hours=1)])
def test_a_rotation_keeps_name_role_and_lifetime(overlap: timedelta) -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        old = await make(process, role=Role.RUNNER, expires_at=disk.clock() + timedelta(days=30))
        disk.clock.advance(timedelta(days=10))
        made = await process.keys.rotate("acme", old.key.api_key_id, overlap, "key_1")
        assert (made.key.name, made.key.role, made.key.created_by) == ("ci", Role.RUNNER, "key_1")
        assert made.key.expires_at == disk.clock() + timedelta(days=30)
        await process.ring.refresh()
        assert (await process.ring.authenticate(made.text)).role is Role.RUNNER
        if overlap:
            assert await process.ring.authenticate(old.text)
            disk.clock.advance(overlap)
            await process.ring.refresh()
        assert await cause(process, old.text) in ("EXPIRED", "REVOKED")

    world(scenario)


def test_an_overlap_never_prolongs_a_key() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        end = disk.clock() + timedelta(minutes=5)
        old = await make(process, expires_at=end)
        await process.keys.rotate("acme", old.key.api_key_id, timedelta(days=30), "admin")
        assert disk.keys[old.key.api_key_id].expires_at == end

    world(scenario)


def test_of_a_lineage_two_keys_are_live_at_most() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        first = await make(process)
        second = await process.keys.rotate("acme", first.key.api_key_id, timedelta(hours=1), "admin")
        for key_id in (first.key.api_key_id, second.key.api_key_id):
            with pytest.raises(FailedPrecondition) as info:
                await process.keys.rotate("acme", key_id, timedelta(hours=1), "admin")
            assert info.value.reason == "API_KEY_ROTATING"
        third = await process.keys.rotate("acme", second.key.api_key_id, timedelta(), "admin")
        assert {key.api_key_id for key in disk.live_keys("acme")} == {first.key.api_key_id, third.key.api_key_id}
        with pytest.raises(FailedPrecondition) as info:
            await process.keys.rotate("acme", second.key.api_key_id, timedelta(), "admin")
        assert info.value.reason == "API_KEY_NOT_LIVE"
        await process.keys.revoke("acme", first.key.api_key_id)
        await process.keys.rotate("acme", third.key.api_key_id, timedelta(hours=1), "admin")
        assert len(disk.live_keys("acme")) == 2

    world(scenario)


def test_rotations_at_once_leave_two_live_keys_at_most() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        first = await make(process)
        others = [Process(disk) for _ in range(3)]
        for overlap in (timedelta(hours=1), timedelta()):
            outcomes = await asyncio.gather(
                *(other.keys.rotate("acme", first.key.api_key_id, overlap, "admin") for other in others * 3),
                return_exceptions=True,
            )
            won = [outcome for outcome in outcomes if isinstance(outcome, NewKey)]
            assert len(won) == 1
            assert all(isinstance(outcome, NewKey | Aborted | FailedPrecondition) for outcome in outcomes)
            assert len(disk.live_keys("acme")) <= 2

    world(scenario)


def test_another_tenants_key_does_not_exist() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        made = await make(process, "acme")
        for work in (
            process.keys.revoke("other", made.key.api_key_id),
            process.keys.rotate("other", made.key.api_key_id, timedelta(), "admin"),
        ):
            with pytest.raises(NotFound) as info:
                await work
            assert info.value.reason == "API_KEY_NOT_FOUND"
        assert len(disk.live_keys("acme")) == 1

    world(scenario)


def test_revoking_twice_is_harmless_and_every_change_is_audited() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        made = await make(process)
        rotated = await process.keys.rotate("acme", made.key.api_key_id, timedelta(), "admin")
        first = await process.keys.revoke("acme", rotated.key.api_key_id)
        assert await process.keys.revoke("acme", rotated.key.api_key_id) == first
        actions = [record.action for record in disk.audit]
        assert actions == ["api_key.create", "api_key.rotate", "api_key.revoke", "api_key.revoke"]
        assert all(made.text.split("_")[3] not in repr(record) for record in disk.audit)

    world(scenario)


def test_a_change_that_could_not_be_audited_is_not_answered() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        async def broken(*args: object, **more: object) -> None:
            raise Unavailable("STORE_UNAVAILABLE", "The fake is down.")

        process.keys._audit = broken
        with pytest.raises(Error):
            await make(process)
        assert disk.live_keys("acme") == []

    world(scenario)


@pytest.mark.parametrize("when", ["before", "as it is stored", "after"])
def test_no_key_made_while_its_tenant_leaves_stays(when: str) -> None:
    """Whichever of the two is first, the offboarding or the key: no key outlives it."""

    async def scenario(disk: Disk, process: Process) -> None:
        await process.onboarding.onboard(application())
        if when == "before":
            await process.tenants.offboard("acme", delete_dataset=False)
        elif when == "as it is stored":
            insert = process.keys._store.insert

            async def leaves_first(key: ApiKey, **more: Any) -> None:
                await process.tenants.offboard("acme", delete_dataset=False)
                await insert(key, **more)

            process.keys._store.insert = leaves_first  # type: ignore[method-assign]
        made = make(process, must_stay=process.tenants.must_stay)
        if when == "after":
            await made
            await process.tenants.offboard("acme", delete_dataset=False)
        else:
            with pytest.raises(FailedPrecondition) as refused:
                await made
            assert refused.value.reason == "TENANT_OFFBOARDING"
        assert disk.live_keys("acme") == []

    world(scenario)
