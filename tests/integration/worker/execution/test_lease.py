"""What a worker's beat stores and brings back, and for how long the worker may rely on it."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from agent_relay.shared.clock import new_id
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.cancel import cancel
from agent_relay.shared.runs.recovery import declare_dead
from agent_relay.shared.settings import Settings
from agent_relay.worker.execution.attempt import Attempt, Stop
from agent_relay.worker.execution.in_flight import RunsInFlight
from agent_relay.worker.execution.kept_partials import Held
from agent_relay.worker.execution.lease import EXIT_STATUS, Lease, Row
from tests.support.eventually import soon
from tests.support.stage import Stage

QUICKLY: dict[str, Any] = {"lease_seconds": 60, "beat_seconds": 0.05}


def lease_of(database_url: str, held: list[Held], rows: list[Row], **settings: Any) -> Lease:
    """Make the lease of a worker that holds these runs; what beats bring back is put into `rows`."""
    return Lease(
        Settings(database_url=database_url, redis_url="redis://nowhere", **QUICKLY | settings),
        "0",
        first_id=new_id(),
        agents=(),
        held=lambda: held,
        told=list,
        beat=rows.extend,
        lost=lambda: None,
    )


async def test_a_beat_stores_what_there_is_of_an_answer_but_not_of_an_attempt_that_is_over(
    stage: Stage, database_url: str
) -> None:
    held: list[Held] = []
    lease = lease_of(database_url, held, [])
    await lease.acquire()
    assert lease.worker_id is not None
    mine, over = await stage.query(), await stage.query(thread_id=None, agent_type="echo")
    for run_id in (mine, over):
        await stage.claimed(run_id, lease.worker_id)
    await stage.execute("UPDATE runs SET attempt = 2 WHERE id = :id", id=over)

    held += [Held(run_id, 1, "So far", 3, {"requests": 2}) for run_id in (over, mine)]

    async def stored() -> bool:
        return (await stage.row(mine)).partial_output is not None

    assert await soon(stored)
    row, other = await stage.row(mine), await stage.row(over)
    assert (row.partial_output, row.last_entry, row.usage) == ("So far", 3, {"requests": 2})
    assert (other.partial_output, other.last_entry, other.usage) == (None, 0, {"requests": 1})
    await lease.release()


async def test_a_beat_brings_the_wish_to_cancel_also_without_redis(stage: Stage, database_url: str) -> None:
    rows: list[Row] = []
    lease = lease_of(database_url, [], rows)
    await lease.acquire()
    assert lease.worker_id is not None
    run_id = await stage.query()
    await stage.claimed(run_id, lease.worker_id)
    stopped: list[Stop] = []
    roster = RunsInFlight(stage.database, cast("RunQueue", None), 2)
    roster.take(run_id)
    roster.begin(
        cast(
            "Attempt",
            SimpleNamespace(claimed=SimpleNamespace(run_id=run_id, agent_type="echo"), stop=stopped.append),
        )
    )

    await cancel(stage.database, run_id)

    async def told() -> bool:
        return Row(run_id, 1, cancel_requested=True) in rows

    assert await soon(told)
    roster.beat([Row(run_id, 1, cancel_requested=True)])
    assert stopped == [Stop.CANCELLED]
    await lease.release()


async def test_a_lease_counts_from_before_the_beat_was_sent(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's clock began with the statement, however late the answer comes."""
    renew = Lease._renew  # pyright: ignore[reportPrivateUsage]

    def late(self: Lease, connection: Any) -> None:
        renew(self, connection)
        time.sleep(1.1)

    monkeypatch.setattr(Lease, "_renew", late)
    lease = lease_of(database_url, [], [], lease_seconds=1)

    await lease.acquire()

    assert lease.worker_id is None
    await lease.release()


async def test_a_worker_that_was_declared_dead_stops_what_it_does_and_begins_anew(
    stage: Stage, database_url: str
) -> None:
    lost = asyncio.Event()
    settings = Settings(database_url=database_url, redis_url="redis://nowhere", **QUICKLY)
    lease = Lease(settings, "0", first_id=new_id(), agents=(), held=list, told=list, beat=lambda _: None, lost=lost.set)
    await lease.acquire()
    declared_dead = lease.worker_id
    assert declared_dead is not None

    await stage.execute("UPDATE workers SET ended_at = now()")

    await asyncio.wait_for(lost.wait(), 30)

    async def began_anew() -> UUID | None:
        return lease.worker_id if lease.worker_id != declared_dead else None

    anew = await soon(began_anew)
    await declare_dead(stage.database, declared_dead)  # By whoever sees the process die, and knows it by that id.
    assert await stage.execute("SELECT 1 FROM workers WHERE id = :id AND ended_at IS NOT NULL", id=anew)
    await lease.release()


async def test_a_run_that_cannot_be_kept_keeps_nobody_else(stage: Stage, database_url: str) -> None:
    held: list[Held] = []
    lease = lease_of(database_url, held, [])
    await lease.acquire()
    assert lease.worker_id is not None
    runs = [await stage.query(thread_id=None, agent_type="echo") for _ in range(3)]
    for run_id in runs:
        await stage.claimed(run_id, lease.worker_id)

    held += [Held(run_id, 1, text, 3, {}) for run_id, text in zip(runs, ["a\0b", "\ud83d", "So far"], strict=True)]

    async def stored() -> bool:
        return (await stage.row(runs[2])).partial_output == "So far"

    assert await soon(stored)
    seen = (await stage.execute("SELECT lease_until FROM workers WHERE id = :id", id=lease.worker_id))[0].lease_until

    async def renewed() -> bool:
        renewal = "SELECT 1 FROM workers WHERE id = :id AND lease_until > :seen AND ended_at IS NULL"
        return bool(await stage.execute(renewal, id=lease.worker_id, seen=seen))

    assert await soon(renewed)
    assert [(await stage.row(run_id)).partial_output for run_id in runs[:2]] == [None, None]
    await lease.release()


async def test_a_beat_that_breaks_in_a_way_nobody_foresaw_ends_the_process(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses: list[int] = []

    def break_down(*_: object, **__: object) -> None:
        raise RuntimeError("nobody foresaw it")

    monkeypatch.setattr("agent_relay.worker.execution.lease.os._exit", statuses.append)
    monkeypatch.setattr("agent_relay.worker.execution.lease._Connection.connect", break_down)
    acquiring = asyncio.create_task(lease_of(database_url, [], []).acquire())

    async def ended() -> bool:
        return bool(statuses)

    assert await soon(ended)
    assert statuses == [EXIT_STATUS]
    acquiring.cancel()
