"""A run that starts later: nobody begins it before its time, everybody may after it, and its thread does not wait."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from agent_relay.shared.clock import now
from agent_relay.shared.database.set_aside import Aside
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.errors import QueueFull, ThreadBusy
from agent_relay.shared.queue import QueueEntry
from agent_relay.shared.runs.accept import Query, Strategy, accept
from agent_relay.shared.runs.cancel import cancel, supersede
from agent_relay.shared.runs.claim import claim, claim_many
from agent_relay.shared.runs.dead_letters import requeue
from agent_relay.shared.runs.finish import Ending, finish, next_in_thread, next_in_threads
from agent_relay.shared.runs.missing_entries import due_runs
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.runs.recovery import expire
from agent_relay.shared.runs.start import start_alone, start_in_threads
from agent_relay.shared.settings import Settings
from tests.support.stage import Stage

ALONE: dict[str, Any] = {"thread_id": None, "agent_type": "echo"}
HOUR: dict[str, Any] = {"start_after_seconds": 3600}


async def its_time_comes(stage: Stage, run_id: UUID) -> None:
    """Have the time of a run's start pass."""
    await stage.execute(
        "UPDATE runs SET start_at = now() - interval '1 minute', due_at = now() - interval '1 minute',"
        " rung_at = now() - interval '1 minute' WHERE id = :id",
        id=run_id,
    )


async def started(stage: Stage) -> list[QueueEntry]:
    """Start what is to start."""
    return [*await start_alone(stage.database, Aside()), *await start_in_threads(stage.database, Aside())]


async def end(stage: Stage, run_id: UUID) -> None:
    """Have a worker answer a run."""
    claimed = await stage.claimed(run_id, await stage.worker())
    ending = Ending(status=RunStatus.SUCCEEDED, text="Yes", last_entry=1, usage={})
    assert await finish(stage.database, claimed, ending) is not None


async def test_nobody_begins_it_before_its_time_and_nobody_is_called(stage: Stage) -> None:
    asked = Query(tenant="acme", user_id=stage.user_id, query="?", deadline_seconds=60, **ALONE, **HOUR)
    accepted = await accept(stage.database, asked)
    row = await stage.row(accepted.run.id)
    worker = await stage.worker()

    assert accepted.ring is None
    assert row.status == "queued"
    assert row.deadline_at - row.start_at == timedelta(seconds=60)
    assert timedelta(minutes=59) < row.start_at - row.created_at < timedelta(minutes=61)
    assert await claim(stage.database, row.id, worker, isolated=False) is None
    assert await started(stage) == []
    assert await expire(stage.database) == []


async def test_one_whose_time_has_come_is_started_once_and_then_as_any_other(stage: Stage) -> None:
    run_id = await stage.query(**ALONE, **HOUR)
    await its_time_comes(stage, run_id)
    worker = await stage.worker()
    before = await claim(stage.database, run_id, worker, isolated=False)
    many = await claim_many(stage.database, [(run_id, worker)], isolated=False)

    at_once = await asyncio.gather(*(start_alone(stage.database, Aside()) for _ in range(4)))

    assert before is None
    assert many == {}
    assert [entry.run_id for entries in at_once for entry in entries] == [run_id]
    assert await started(stage) == []
    assert (await stage.claimed(run_id, worker)).attempt == 1


async def test_of_a_thread_it_takes_its_place_and_its_message_when_it_starts(stage: Stage) -> None:
    later = await stage.query(query="later", **HOUR)
    meanwhile = await stage.query(query="meanwhile")
    messages = "SELECT content FROM messages ORDER BY position"

    assert [row.content for row in await stage.execute(messages)] == ["meanwhile"]
    await end(stage, meanwhile)
    await its_time_comes(stage, later)
    assert await next_in_thread(stage.database, stage.thread_id) is None
    assert (await next_in_threads(stage.database, [stage.thread_id]))[stage.thread_id] is None
    at_once = await asyncio.gather(*(start_in_threads(stage.database, Aside()) for _ in range(4)))
    again = await started(stage)
    after = await stage.query(query="after")

    assert [entry.run_id for entries in (*at_once, again) for entry in entries] == [later]
    assert [row.content for row in await stage.execute(messages)] == ["meanwhile", "Yes", "later", "after"]
    assert await claim(stage.database, after, await stage.worker(), isolated=False) is None
    await end(stage, later)
    await end(stage, after)


async def test_those_of_one_thread_that_are_due_together_start_one_after_the_other(stage: Stage) -> None:
    runs = [await stage.query(query=str(number), **HOUR) for number in range(3)]
    for run_id in reversed(runs):
        await its_time_comes(stage, run_id)
    order = [runs[2], runs[1], runs[0]]

    entries = [(await start_in_threads(stage.database, Aside()))[0].run_id for _ in runs]

    assert entries == order
    assert await start_in_threads(stage.database, Aside()) == []
    for run_id in order:
        await end(stage, run_id)


async def test_a_thread_is_not_busy_with_it_and_an_interrupt_leaves_it_alone(stage: Stage) -> None:
    later = await stage.query(**HOUR)

    rejecting = await stage.query(strategy=Strategy.REJECT)
    with pytest.raises(ThreadBusy) as busy:
        await stage.query(strategy=Strategy.REJECT)
    await stage.query(strategy=Strategy.ROLLBACK)

    assert busy.value.run_id == rejecting
    assert (await stage.row(later)).status == "queued"


async def test_it_is_cancelled_at_once_alone_or_with_its_thread(stage: Stage) -> None:
    alone, of_thread = await stage.query(**ALONE, **HOUR), await stage.query(**HOUR)

    cancellation = await cancel(stage.database, alone)
    async with stage.database.begin() as connection:
        with_thread = await supersede(connection, stage.thread_id, roll_back=False, also_later=True)

    assert cancellation is not None
    assert cancellation.ended is not None
    assert [each.run_id for each in with_thread] == [of_thread]
    assert {(await stage.row(run_id)).status for run_id in (alone, of_thread)} == {"cancelled"}
    for run_id in (alone, of_thread):
        await its_time_comes(stage, run_id)
    assert await started(stage) == []


async def test_one_of_a_deleted_thread_does_not_start(stage: Stage) -> None:
    await its_time_comes(stage, await stage.query(**HOUR))
    await stage.execute("UPDATE threads SET deleted_at = now()")

    assert await started(stage) == []
    assert await stage.execute("SELECT 1 FROM messages") == []


async def test_one_that_nobody_started_fails_at_its_deadline_and_is_requeued_with_its_own_time(stage: Stage) -> None:
    run_id = await stage.query(**ALONE, **HOUR)
    await stage.execute(
        "UPDATE runs SET start_at = start_at - interval '2 hours', deadline_at = deadline_at - interval '2 hours'"
    )

    [expired] = await expire(stage.database)
    requeued = await requeue(stage.database, run_id)

    assert expired.error["code"] == "deadline_exceeded"  # pyright: ignore[reportArgumentType, reportCallIssue, reportOptionalSubscript, reportIndexIssue]
    again = await stage.row(requeued.run_id)
    assert again.start_at is None
    assert again.deadline_at - again.created_at == timedelta(seconds=60)


async def test_a_time_that_has_passed_is_now(stage: Stage) -> None:
    asked = Query(tenant="acme", user_id=stage.user_id, query="?", deadline_seconds=60, start_at=now(), **ALONE)

    accepted = await accept(stage.database, asked)

    assert accepted.ring is not None
    assert accepted.run.start_at is None


async def test_they_are_counted_apart_from_those_that_wait(stage: Stage) -> None:
    settings = Settings(
        database_url="postgresql://x@127.0.0.1/x",
        redis_url="redis://127.0.0.1/0",
        max_queued_per_user=2,
        max_queued_per_tenant=0,
        max_queued=0,
    )
    admission = Admission(settings)

    async def ask(**start: Any) -> None:
        asked = Query(tenant="acme", user_id=stage.user_id, query="?", deadline_seconds=60, **ALONE, **start)
        await accept(stage.database, asked, None, admission)

    for start in (HOUR, {}, HOUR, {}):
        await ask(**start)
    for start in (HOUR, {}):
        with pytest.raises(QueueFull):
            await ask(**start)


async def test_the_sweeper_never_takes_one_for_a_run_whose_queue_entry_is_lost(stage: Stage) -> None:
    run_id = await stage.query(**ALONE, **HOUR)
    await its_time_comes(stage, run_id)

    assert (await due_runs(stage.database, "default", "interactive", (None, None))).members is None
    await started(stage)
    await stage.execute("UPDATE runs SET rung_at = now() - interval '1 minute'")

    assert (await due_runs(stage.database, "default", "interactive", (None, None))).members == [f"{run_id}:2"]
