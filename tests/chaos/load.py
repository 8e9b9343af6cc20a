"""What customers do while the stack is harmed, and what they may believe of it.

Each ``Customer`` is one tenant with a mind of its own (a seeded generator). An answer is either OK, and is believed for
ever; or refused, and may be asked again; anything else is wrong and goes into ``History.wrong``. What was acknowledged
is kept, so that ``invariants`` can ask for it at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import httpx

from libs.tenancy import TenantId
from services.pipeline_executor.domain import run_id_of
from tests.chaos.source import Source
from tests.support.stack import ENDED, Stack

PIPELINE = {"provider": "gcp", "domain": "cost", "template": "billing"}
# Tenant's promise: a revoked key ends within 15 s, however the store is.
_REVOKED_SECONDS = 16.0
_GRPC_ABORTED, _GRPC_EXISTS = 10, 6
# An executor with as many runs as it takes has done nothing, and says when to come back.
_FULL = "EXECUTOR_FULL"
_ARRIVAL_SECONDS = 4.0


class Kind(Enum):
    """How a request ended, as its caller sees it."""

    OK = "ok"
    # Answered with an error that says that nothing was done.
    REFUSED = "refused"
    # Nobody can know whether it was done: an error of the edge, or no answer.
    UNKNOWN = "unknown"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's end."""

    kind: Kind
    status: int
    body: dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.kind is Kind.OK


@dataclass(slots=True)
class History:
    """Everything that was asked, by what and how it ended; and what should not have been answered so."""

    log: Path
    counts: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def note(self, what: str, answer: Answer, seconds: float, detail: str) -> None:
        self.counts[what, answer.kind] += 1
        self.statuses[answer.status] += 1
        if answer.ok:
            self.seconds.append(seconds)
        with self.log.open("a") as out:
            line = {"at": round(time.time(), 3), "op": what, "kind": answer.kind.value, "status": answer.status}
            out.write(json.dumps(line | {"seconds": round(seconds, 3), "detail": detail[:400]}) + "\n")

    def say_wrong(self, text: str) -> None:
        self.wrong.append(text)
        with self.log.open("a") as out:
            out.write(json.dumps({"at": round(time.time(), 3), "wrong": text}) + "\n")

    def total(self, kind: Kind) -> int:
        return sum(count for (_, of), count in self.counts.items() if of is kind)


class Client:
    """The REST API, with every answer judged."""

    def __init__(self, stack: Stack, history: History) -> None:
        self.history = history
        self._http = httpx.AsyncClient(
            base_url=stack.rest, timeout=75, limits=httpx.Limits(max_connections=200, max_keepalive_connections=50)
        )

    async def call(
        self,
        what: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str,
        once: str = "",
        expected: Sequence[int] = (),
    ) -> Answer:
        """Calls below ``/api/v1``; ``expected`` are refusals that this request may rightly meet."""
        headers = {"X-API-Key": key} | ({"Idempotency-Key": once} if once else {})
        began = time.monotonic()
        try:
            answer = await self._http.request(method, f"/api/v1{path}", json=body, headers=headers)
        except httpx.HTTPError as exc:
            seen = Answer(Kind.UNKNOWN, 0, {"error": type(exc).__name__})
        else:
            seen = self._judge(answer, expected)
        detail = f"{method} {path} {'' if seen.ok else json.dumps(seen.body)}"
        self.history.note(what, seen, time.monotonic() - began, detail)
        if seen.kind is Kind.WRONG:
            self.history.say_wrong(f"{what}: {method} {path} answered {seen.status} {json.dumps(seen.body)[:300]}")
        return seen

    @staticmethod
    def _judge(answer: httpx.Response, expected: Sequence[int]) -> Answer:
        try:
            body = answer.json()
        except ValueError:
            body = {"text": answer.text[:200]}
            if answer.status_code < 500:
                return Answer(Kind.WRONG, answer.status_code, body)
        if answer.status_code == 200:
            return Answer(Kind.OK, 200, body)
        if (
            answer.status_code in expected
            or answer.status_code == 429
            or _FULL in [each.get("reason") for each in body.get("details", [])]
        ):
            return Answer(Kind.REFUSED, answer.status_code, body)
        if answer.status_code in (503, 504) or (answer.status_code == 409 and body.get("code") == _GRPC_ABORTED):
            return Answer(Kind.UNKNOWN, answer.status_code, body)
        return Answer(Kind.WRONG, answer.status_code, body)

    async def watch(self, path: str, key: str, seconds: float) -> list[dict[str, Any]]:
        """What a watch shows for that long at most; what is cut off is cut off."""
        seen: list[dict[str, Any]] = []
        with contextlib.suppress(httpx.HTTPError, TimeoutError, ValueError):
            async with (
                asyncio.timeout(seconds),
                self._http.stream("GET", f"/api/v1{path}", headers={"X-API-Key": key}) as answer,
            ):
                if answer.status_code == 200:
                    async for line in answer.aiter_lines():
                        if line:
                            seen.append(json.loads(line))
        return seen

    async def close(self) -> None:
        await self._http.aclose()


@dataclass(slots=True)
class RunFacts:
    """A run that was asked for, and all that was said of it since."""

    run_id: str
    key: str
    date: str
    # The rows that its source had when it was first asked for: it may not publish fewer.
    least: int
    parameters: Mapping[str, Any]
    acknowledged: bool = False
    cancelled: bool = False
    final: tuple[str, str, int] | None = None


@dataclass(slots=True)
class ScheduleFacts:
    """A schedule as it was acknowledged last; ``active`` is None while nobody can know."""

    config_id: str
    active: bool | None
    shifted: bool = False
    deleted: bool = False


class Customer:
    """One tenant that works: runs, cancels, schedules, backfills, credentials, keys, reads."""

    def __init__(self, tenant_id: str, plan: str, stack: Stack, client: Client, source: Source, seed: int) -> None:
        self.tenant_id = tenant_id
        self.plan = plan
        self.key = ""
        self.begun = False
        # What is under way when this is set is done to its end, so that its end is known.
        self.leaving = False
        self.runs: dict[str, RunFacts] = {}
        self.schedules: dict[str, ScheduleFacts] = {}
        self.backfills: set[str] = set()
        self.keys: dict[str, str] = {}
        self.credential_id = ""
        # The last source that was acknowledged, and those of later requests whose end nobody knows.
        self.sources: list[Mapping[str, str]] = []
        self._stack = stack
        self._client = client
        self._source = source
        self._dates = source.dates
        self._random = random.Random(seed)
        self._wrong = client.history.say_wrong

    # ---------------------------------------------------------------- flow 0 and 1

    async def begin(self) -> None:
        """Onboards and stores a credential, however often that takes; goes on where it was broken off."""
        self.begun = True
        body: dict[str, Any] = {
            "tenant_id": self.tenant_id,
            "company_name": f"Endurance {self.tenant_id}",
            "admin_email": f"{self.tenant_id}@example.com",
            "subscription_plan": self.plan,
        }
        admin = self._stack.admin_api_key
        while not self.key and not self.leaving:
            answer = await self._client.call("onboard", "POST", "/tenants/onboard", body, key=admin, expected=[409])
            if answer.ok:
                self.key = answer.body["api_key"]
                break
            if answer.body.get("code") == _GRPC_EXISTS:
                # It was done, and the answer with the key was lost: the admin makes another, as the README says.
                made = await self._client.call(
                    "replace_key",
                    "POST",
                    f"/tenants/{self.tenant_id}/api-keys",
                    {"name": "replaced", "role": "ADMIN"},
                    key=admin,
                )
                if made.ok:
                    self.key = made.body["api_key"]
                    break
            await self._rest(2)
        while not self.credential_id and not self.leaving:
            await self.store_credential()
            await self._rest(2)

    async def store_credential(self) -> bool:
        """Posts the credential, with one of two sources that hold the same."""
        body = json.loads(json.dumps(self._stack.sample_credential))
        body["source"] = {**self._source.where, "location": self._random.choice(["US", "us"])}
        answer = await self._client.call(
            "credential", "POST", f"/tenants/{self.tenant_id}/credentials", body, key=self.key
        )
        if answer.ok:
            if self.credential_id and answer.body["credential_id"] != self.credential_id:
                self._wrong(f"{self.tenant_id} has a second credential {answer.body}")
            self.credential_id = answer.body["credential_id"]
            self.sources = [body["source"]]
        elif answer.kind is Kind.UNKNOWN:
            self.sources.append(body["source"])
        return answer.ok

    # ---------------------------------------------------------------- what it does all day

    async def live(self, others: Sequence[Customer]) -> None:
        """Acts until it is to leave; begins at its own time, as customers do not all come at once."""
        if not self.key:
            await asyncio.sleep(_ARRIVAL_SECONDS * list(others).index(self))
        await self.begin()
        acts = {
            self._run: 10,
            self._read: 6,
            self._cancel: 2,
            self._list: 2,
            self._usage: 2,
            self._schedule: 2,
            self._switch: 1,
            self._backfill: 0.5,
            self._credential: 1,
            self._key: 0.7,
            self._watch: 1,
            self._costs: 1,
            self._peep: 2,
        }
        self._others = others
        if not self.leaving:
            await self._run()
        while not self.leaving:
            [act] = self._random.choices(list(acts), list(acts.values()))
            await act()
            await self._rest(1.2)

    async def _rest(self, seconds: float) -> None:
        await asyncio.sleep(self._random.uniform(0.3, 1.0) * seconds)

    def _some_run(self) -> RunFacts | None:
        known = [run for run in list(self.runs.values())[-12:] if run.acknowledged]
        return self._random.choice(known) if known else None

    async def _run(self) -> None:
        pending = [run for run in self.runs.values() if not run.acknowledged]
        if pending and self._random.random() < 0.5:
            run = pending[0]
        else:
            key = uuid.UUID(int=self._random.getrandbits(128)).hex
            date = self._random.choice(self._dates)
            # Half of them publish whatever stands published already.
            parameters = {"force": True} if self._random.random() < 0.5 else {}
            run_id = run_id_of(TenantId(self.tenant_id), key)
            run = RunFacts(run_id, key, date, self._source.now(date), parameters)
        path = f"/pipelines/run/{self.tenant_id}/gcp/cost/billing"
        body = {"date": run.date, "parameters": run.parameters}
        answer = await self._client.call("run", "POST", path, body, key=self.key, once=run.key)
        if answer.kind in (Kind.OK, Kind.UNKNOWN):
            self.runs[run.run_id] = run
        elif answer.kind is Kind.REFUSED and not run.acknowledged:
            self.runs.pop(run.run_id, None)
        if answer.ok:
            if answer.body["pipeline_logging_id"] != run.run_id:
                self._wrong(f"one Idempotency-Key of {self.tenant_id} means two runs: {answer.body}")
            run.acknowledged = True
            self.judge(run, answer.body)

    async def _read(self) -> None:
        if run := self._some_run():
            await self.read(run)

    async def read(self, run: RunFacts) -> Answer:
        """Reads a run that was acknowledged, so that it must be there."""
        answer = await self._client.call(
            "read", "GET", f"/pipelines/runs/{self.tenant_id}/{run.run_id}", key=self.key, expected=[]
        )
        if answer.ok:
            self.judge(run, answer.body)
        return answer

    def judge(self, run: RunFacts, said: Mapping[str, Any]) -> None:
        """Holds what is said of a run now against what was said before and against its source."""
        status = said["status"]
        if status not in ENDED:
            if run.final:
                self._wrong(f"run {run.run_id} of {self.tenant_id} was {run.final[0]} and is {status} again")
            return
        final = (status, said.get("outcome", ""), int(said.get("rows_published") or 0))
        if run.final not in (None, final):
            self._wrong(f"run {run.run_id} of {self.tenant_id} was {run.final} and is {final}")
        run.final = final
        if status == "COMPLETED":
            if final[1] not in ("PUBLISHED", "UNCHANGED", "SUPERSEDED"):
                self._wrong(f"run {run.run_id} of {self.tenant_id} ended as {final}, and its source has rows")
            if final[1] == "UNCHANGED" and run.parameters:
                self._wrong(f"run {run.run_id} of {self.tenant_id} was forced and says {final}")
            if run.cancelled:
                self._wrong(
                    f"run {run.run_id} of {self.tenant_id} was COMPLETED after its cancellation was acknowledged"
                )
        elif status == "FAILED" and not said.get("error", {}).get("reason"):
            self._wrong(f"run {run.run_id} of {self.tenant_id} FAILED without a reason")

    async def _cancel(self) -> None:
        going = [run for run in self.runs.values() if run.acknowledged and not run.final]
        if not going:
            return
        run = self._random.choice(going)
        path = f"/pipelines/runs/{self.tenant_id}/{run.run_id}:cancel"
        answer = await self._client.call("cancel", "POST", path, key=self.key, expected=[400])
        if answer.ok:
            run.cancelled = True
            self.judge(run, answer.body)

    async def _list(self) -> None:
        answer = await self._client.call(
            "list_runs", "GET", f"/pipelines/runs/{self.tenant_id}?page_size=50", key=self.key
        )
        for said in answer.body.get("runs", []) if answer.ok else ():
            if said["tenant_id"] != self.tenant_id:
                self._wrong(f"{self.tenant_id} was shown a run of {said['tenant_id']}")
            if run := self.runs.get(said["pipeline_logging_id"]):
                self.judge(run, said)

    async def _usage(self) -> None:
        answer = await self._client.call("usage", "GET", f"/tenants/{self.tenant_id}/usage", key=self.key)
        if answer.ok:
            concurrent = answer.body["concurrent"]
            if concurrent["used"] > concurrent["limit"]:
                self._wrong(f"{self.tenant_id} is said to use {concurrent}")

    async def _schedule(self) -> None:
        if len(self.schedules) >= 8:
            return
        once = uuid.UUID(int=self._random.getrandbits(128)).hex
        body = PIPELINE | {
            "cron": f"{self._random.randrange(60)} * * * *",
            "timezone": self._random.choice(["UTC", "Europe/Berlin", "Asia/Kathmandu"]),
            "catchup_policy": self._random.choice(["LAST", "ALL", "NONE"]),
            "overlap_policy": self._random.choice(["SKIP", "QUEUE_ONE", "ALLOW"]),
            "refresh_window_days": self._random.choice([0, 0, 1]),
        }
        path = f"/scheduler/customer/{self.tenant_id}/pipelines"
        made: set[str] = set()
        for _ in range(3):
            answer = await self._client.call("schedule", "POST", path, body, key=self.key, once=once)
            if answer.ok:
                made.add(answer.body["config_id"])
                if len(made) == 2 or self._random.random() < 0.7:
                    break
            await self._rest(1)
        if len(made) > 1:
            self._wrong(f"one Idempotency-Key of {self.tenant_id} made schedules {made}")
        for config_id in made:
            self.schedules[config_id] = ScheduleFacts(config_id, active=True)

    async def _switch(self) -> None:
        known = [each for each in self.schedules.values() if not each.deleted]
        if not known:
            return
        schedule = self._random.choice(known)
        path = f"/scheduler/customer/{self.tenant_id}/pipelines/{schedule.config_id}"
        pause = self._random.random() < 0.4
        verb = "pause" if pause else "resume"
        answer = await self._client.call(verb, "POST", f"{path}:{verb}", key=self.key)
        if answer.ok:
            schedule.active = not pause
        elif answer.kind is Kind.UNKNOWN and schedule.active is pause:
            schedule.active = None
        seen = await self._client.call("read_schedule", "GET", path, key=self.key)
        if seen.ok and schedule.active not in (None, seen.body["is_active"]):
            self._wrong(f"schedule {schedule.config_id} was acknowledged as active={schedule.active} and is not")

    async def _backfill(self) -> None:
        once = uuid.UUID(int=self._random.getrandbits(128)).hex
        first = self._random.randrange(len(self._dates) - 2)
        body = PIPELINE | {"start_date": self._dates[first], "end_date": self._dates[first]}
        path = f"/scheduler/customer/{self.tenant_id}/backfills"
        answer = await self._client.call("backfill", "POST", path, body, key=self.key, once=once)
        if not answer.ok:
            return
        self.backfills.add(answer.body["backfill_id"])
        if self._random.random() < 0.2:
            path = f"{path}/{answer.body['backfill_id']}:cancel"
            await self._client.call("cancel_backfill", "POST", path, key=self.key, expected=[400])

    async def _credential(self) -> None:
        await self.store_credential()
        path = f"/tenants/{self.tenant_id}/credentials"
        answer = await self._client.call("list_credentials", "GET", path, key=self.key)
        if answer.ok:
            found = [one["credential_id"] for one in answer.body["credentials"]]
            if found != [self.credential_id]:
                self._wrong(f"{self.tenant_id} has credentials {found}, not {self.credential_id}")

    async def _key(self) -> None:
        """Makes a key, which works at once; takes one back, which ends it within seconds."""
        path = f"/tenants/{self.tenant_id}/api-keys"
        usage = f"/tenants/{self.tenant_id}/usage"
        made = await self._client.call("new_key", "POST", path, {"name": "another", "role": "ADMIN"}, key=self.key)
        if not made.ok:
            return
        await self._client.call("use_new_key", "GET", usage, key=made.body["api_key"])
        if self._random.random() < 0.5:
            self.keys[made.body["api_key_id"]] = made.body["api_key"]
            return
        gone = await self._client.call("revoke_key", "DELETE", f"{path}/{made.body['api_key_id']}", key=self.key)
        if gone.ok:
            await asyncio.sleep(_REVOKED_SECONDS)
            seen = await self._client.call("use_revoked_key", "GET", usage, key=made.body["api_key"], expected=[401])
            if seen.ok:
                self._wrong(f"a key of {self.tenant_id} works {_REVOKED_SECONDS:.0f} s after it was revoked")

    async def _watch(self) -> None:
        if run := self._some_run():
            seen = await self._client.watch(
                f"/pipelines/runs/{self.tenant_id}/{run.run_id}:watch", self.key, self._random.uniform(1, 15)
            )
            for progress in seen:
                self.judge(run, progress["run"])

    async def _costs(self) -> None:
        first, last = min(self._dates), max(self._dates)
        path = f"/costs/{self.tenant_id}?start_date={first}&end_date={last}"
        await self._client.call("costs", "GET", path, key=self.key)

    async def _peep(self) -> None:
        """Another tenant's things are not there."""
        other = self._random.choice([other for other in self._others if other.key] or [self])
        if other is self:
            return
        run = other._some_run()
        path = f"/pipelines/runs/{other.tenant_id}" + (f"/{run.run_id}" if run else "")
        path = self._random.choice(
            [path, f"/tenants/{other.tenant_id}/credentials", f"/tenants/{other.tenant_id}/usage"]
        )
        answer = await self._client.call("peep", "GET", path, key=self.key, expected=[404])
        if answer.ok:
            self._wrong(f"{self.tenant_id} could read {path}")


class Jobs:
    """The three CronJobs, which come twice, late, and while the last call still runs."""

    def __init__(self, client: Client, admin_key: str, seed: int) -> None:
        self._client = client
        self._key = admin_key
        self.leaving = False
        self._random = random.Random(seed)

    async def live(self, *, budget: int = 10) -> None:
        """Calls them until it is to leave."""
        while not self.leaving:
            calls = [self.trigger(), self.process_queue(budget)]
            if self._random.random() < 0.3:
                calls.append(self.process_queue(budget))
            if self._random.random() < 0.1:
                calls.append(self._call("reset-daily-quotas"))
            await asyncio.gather(*calls)
            await asyncio.sleep(self._random.uniform(1, 6))

    async def trigger(self) -> Answer:
        return await self._call("trigger")

    async def process_queue(self, budget: int) -> Answer:
        return await self._call("process-queue", {"time_budget_seconds": budget})

    async def _call(self, name: str, body: Any = None) -> Answer:
        return await self._client.call(name, "POST", f"/scheduler/{name}", body, key=self._key)
