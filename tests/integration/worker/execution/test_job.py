"""What is popped together is claimed together; whoever ends a run, or gives it back, calls for the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from agent_relay.shared.database.tables import AttemptReason, RunStatus
from agent_relay.shared.runs.claim import claim, claim_many
from agent_relay.shared.runs.concurrency_limits import Quota
from agent_relay.shared.runs.finish import Ending
from agent_relay.shared.settings import Settings
from agent_relay.worker.execution import job as job_module
from agent_relay.worker.execution.attempt import Attempt
from agent_relay.worker.execution.in_flight import RunsInFlight
from agent_relay.worker.execution.job import Job
from tests.integration.test_lost_replies import Rung
from tests.support.eventually import soon
from tests.support.stage import Stage

SECONDS = 30
"""A claim that waits for another's row would wait for ever."""
STATELESS = {"thread_id": None, "agent_type": "echo"}
ANSWERED = Ending(status=RunStatus.SUCCEEDED, text="ok", last_entry=1, usage={})


@pytest.fixture
def lanes() -> Rung:
    return Rung()


@pytest.fixture
def job(stage: Stage, lanes: Rung, database_url: str) -> Job:
    """A worker's job of a service where one run a user runs at a time."""
    settings = Settings(database_url=database_url, redis_url="redis://none", max_running_per_user=1)
    nothing: Any = None

    async def tell_end(*_: Any) -> None: ...

    def end_told(_: UUID) -> None: ...

    publisher, roster = SimpleNamespace(tell_end=tell_end), SimpleNamespace(end_told=end_told)
    return Job(
        settings,
        stage.database,
        stage.database,
        lanes,
        cast("Any", publisher),
        cast("Any", roster),
        nothing,
        nothing,
        {},
        nothing,
        nothing,
    )


async def take(stage: Stage, run_id: UUID) -> Any:
    """Claim a run of such a service."""
    return await claim(stage.database, run_id, await stage.worker(), isolated=False, quota=Quota(of_user=1))


async def test_who_was_passed_over_is_called_as_the_run_before_it_ends(stage: Stage, job: Job, lanes: Rung) -> None:
    running, waiting = await stage.query(**STATELESS), await stage.query(**STATELESS)
    claimed = await take(stage, running)
    assert await take(stage, waiting) is None

    await job._store(claimed, ANSWERED)  # pyright: ignore[reportPrivateUsage]

    assert [ring.member for ring in lanes.rung] == [f"{waiting}:2"]
    assert await take(stage, waiting) is not None


async def test_the_next_of_a_thread_is_called_as_the_run_before_it_ends(stage: Stage, job: Job, lanes: Rung) -> None:
    running, waiting = await stage.query(), await stage.query()
    claimed = await take(stage, running)

    await job._store(claimed, ANSWERED)  # pyright: ignore[reportPrivateUsage]

    assert [ring.run_id for ring in lanes.rung] == [waiting]


async def test_what_is_given_back_is_called_for_first_and_at_once(stage: Stage, job: Job, lanes: Rung) -> None:
    claimed = await take(stage, await stage.query())
    stopped = SimpleNamespace(claimed=claimed, usage={}, begun_next=AttemptReason.WORKER_STOPPING)

    await job._conclude(cast("Attempt", stopped), None)  # pyright: ignore[reportPrivateUsage]

    assert [(ring.run_id, ring.first) for ring in lanes.rung] == [(claimed.run_id, True)]


@dataclass
class Popping:
    """A worker's job that serves no agent: what it claims, it gives back; it notes what it does."""

    job: Job
    worker_id: UUID
    quarantined: list[UUID]
    claims: list[str]

    async def answer(self, *run_ids: UUID) -> None:
        """Answer runs that were popped together, to their end."""
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*self.job.answer(run_ids, self.worker_id).values())


@pytest.fixture
async def popping(stage: Stage, lanes: Rung, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Popping:
    settings = Settings(database_url=database_url, redis_url="redis://none")
    quarantined, claims = list[UUID](), list[str]()

    async def quarantine(run_id: UUID) -> None:
        quarantined.append(run_id)

    def noted(name: str, make: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def noting(*arguments: Any, **options: Any) -> Any:
            claims.append(name)
            return await make(*arguments, **options)

        return noting

    monkeypatch.setattr(job_module, "claim", noted("alone", claim))
    monkeypatch.setattr(job_module, "claim_many", noted("together", claim_many))
    nothing: Any = None
    isolation = cast("Any", SimpleNamespace(answer=quarantine))
    roster = RunsInFlight(stage.database, lanes, 2)
    job = Job(
        settings, stage.database, stage.database, lanes, nothing, roster, nothing, isolation, {}, nothing, nothing
    )
    return Popping(job, await stage.worker(), quarantined, claims)


async def test_what_was_popped_together_is_claimed_in_one_statement(stage: Stage, popping: Popping) -> None:
    run_ids = [await stage.query(**STATELESS) for _ in range(5)]

    await popping.answer(*run_ids, run_ids[0])

    assert popping.claims == ["together"]
    assert [(await stage.row(run_id)).attempt for run_id in run_ids] == [1] * 5


async def test_one_that_was_popped_alone_costs_one_statement(stage: Stage, popping: Popping) -> None:
    await popping.answer(run_id := await stage.query(**STATELESS))

    assert popping.claims == ["alone"]
    assert (await stage.row(run_id)).attempt == 1


async def test_what_cannot_be_claimed_together_keeps_no_other_from_being_claimed(
    stage: Stage, popping: Popping
) -> None:
    free, taken, suspect, locked = [await stage.query(**STATELESS) for _ in range(4)]
    await stage.claimed(taken, await stage.worker())
    await stage.execute("UPDATE runs SET crashes = 1 WHERE id = :id", id=suspect)
    async with stage.database.connect() as somebody:
        await somebody.execute(text("SELECT FROM runs WHERE id = :id FOR UPDATE"), {"id": locked})
        answering = asyncio.create_task(popping.answer(free, taken, suspect, locked))

        async def claimed() -> bool:
            return (await stage.row(free)).attempt == 1 and bool(popping.quarantined)

        assert await soon(claimed)
    await answering

    rows = [await stage.row(run_id) for run_id in (free, taken, suspect, locked)]
    assert [row.attempt for row in rows] == [1, 1, 0, 1]
    assert popping.quarantined == [suspect]


@pytest.mark.parametrize("error", [OperationalError("", {}, Exception("away")), ValueError("one of them")])
async def test_a_claim_of_many_that_fails_is_made_for_each_alone(
    stage: Stage, popping: Popping, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def claim_many(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(job_module, "claim_many", claim_many)
    run_ids = [await stage.query(**STATELESS) for _ in range(3)]

    await popping.answer(*run_ids)

    assert [(await stage.row(run_id)).attempt for run_id in run_ids] == [1] * 3


async def test_a_run_that_is_in_hand_is_not_answered_a_second_time(stage: Stage, popping: Popping) -> None:
    run_id, other = await stage.query(**STATELESS), await stage.query(**STATELESS)
    first = popping.job.answer([run_id], popping.worker_id)
    second = popping.job.answer([run_id, other], popping.worker_id)
    assert (list(first), list(second)) == ([run_id], [other])
    await asyncio.gather(*first.values(), *second.values())

    again = popping.job.answer([run_id], popping.worker_id)
    assert list(again) == [run_id]  # It is in hand no longer.
    await asyncio.gather(*again.values())
