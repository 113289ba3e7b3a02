"""Cancelling comes with a receipt: how the run ended, with what it had produced and used, wherever it was just then."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.errors import NotFound, ThreadBusy
from agent_relay.shared.runs.accept import Strategy
from agent_relay.shared.runs.cancel import cancel
from agent_relay.shared.runs.claim import Claim, claim, earlier_exchanges
from agent_relay.shared.runs.finish import Ending, finish, let_go, next_in_thread
from agent_relay.shared.runs.recovery import OVERDUE_SECONDS, declare_dead, expire, take_back
from agent_relay.shared.schemas import whole_usage
from tests.support.client import Client, names
from tests.support.service import Service
from tests.support.stage import Stage

USED: dict[str, float] = {"requests": 2, "input_tokens": 50, "output_tokens": 7}
ALONE: dict[str, Any] = {"thread_id": None, "agent_type": "echo"}


def ending(status: RunStatus, words: str) -> Ending:
    """An end as a worker stores it."""
    return Ending(status=status, text=words, last_entry=3, usage=USED, transcript=f'["{words}"]')


async def begun(stage: Stage, **asked: Any) -> Claim:
    """Have a query asked, claimed, and known to have come to something."""
    run_id = await stage.query(**asked)
    claimed = await stage.claimed(run_id, await stage.worker())
    beat = "UPDATE runs SET partial_output = 'So far', usage = CAST(:usage AS jsonb), last_entry = 2 WHERE id = :id"
    await stage.execute(beat, id=run_id, usage='{"requests": 1}')
    return claimed


async def told(stage: Stage) -> list[tuple[str, str, str | None]]:
    """Read the thread: who, what, and whether it was interrupted."""
    rows = await stage.execute("SELECT role, content, metadata FROM messages ORDER BY position")
    return [(row.role, row.content, row.metadata.get("status")) for row in rows]


async def known_to_the_next(stage: Stage) -> list[str | None]:
    """Say what the thread's next run is told of those before."""
    claimed = await stage.claimed(await stage.query(query="next"), await stage.worker())
    exchanges = await earlier_exchanges(stage.database, claimed, 1 << 20)
    await finish(stage.database, claimed, ending(RunStatus.FAILED, ""))
    return [exchange.transcript or exchange.answer for exchange in exchanges]


async def test_a_queued_run_is_cancelled_at_once_and_the_next_is_called_for(stage: Stage) -> None:
    first, second = await stage.query(), await stage.query()

    cancellation = await cancel(stage.database, first)

    assert cancellation is not None
    assert cancellation.ended is not None
    assert cancellation.ended.status == "cancelled"
    assert (await stage.row(first)).finished_at is not None
    ring = await next_in_thread(stage.database, stage.thread_id)
    assert ring is not None
    assert ring.run_id == second


async def test_a_running_run_is_cancelled_by_its_worker_with_what_it_had(stage: Stage) -> None:
    claimed = await begun(stage)

    cancellation = await cancel(stage.database, claimed.run_id)
    assert cancellation is not None
    assert cancellation.ended is None
    assert (await stage.row(claimed.run_id)).status == "running"
    await finish(stage.database, claimed, ending(RunStatus.CANCELLED, "So far, so good"))

    row = await stage.row(claimed.run_id)
    assert (row.status, row.output, row.partial_output, row.usage) == (
        "cancelled",
        None,
        "So far, so good",
        whole_usage(USED),
    )
    assert await told(stage) == [("user", "?", None), ("assistant", "So far, so good", "interrupted")]
    assert await known_to_the_next(stage) == ['["So far, so good"]']


async def test_a_run_that_is_to_be_cancelled_and_whose_worker_dies_is_cancelled_with_what_is_known(
    stage: Stage,
) -> None:
    claimed = await begun(stage)
    await cancel(stage.database, claimed.run_id)
    await declare_dead(stage.database, (await stage.row(claimed.run_id)).worker_id)

    ended, waiting = await take_back(stage.database, max_crashes=3)

    assert ([row.id for row in ended], waiting) == ([claimed.run_id], [])
    row = await stage.row(claimed.run_id)
    assert (row.status, row.partial_output, row.usage, row.error) == ("cancelled", "So far", {"requests": 1}, None)
    assert await told(stage) == [("user", "?", None), ("assistant", "So far", "interrupted")]
    assert await known_to_the_next(stage) == ["So far"]


async def test_a_run_that_is_to_be_cancelled_and_that_nobody_knows_of_is_cancelled(stage: Stage) -> None:
    claimed = await begun(stage)
    await cancel(stage.database, claimed.run_id)

    assert await let_go(stage.database, claimed.run_id, claimed.attempt) is None

    row = await stage.row(claimed.run_id)
    assert (row.status, row.partial_output, row.finished_at is None) == ("cancelled", "So far", False)
    assert await told(stage) == [("user", "?", None), ("assistant", "So far", "interrupted")]


async def test_an_answer_that_is_stored_after_the_wish_wins_over_it(stage: Stage) -> None:
    claimed = await begun(stage)
    await cancel(stage.database, claimed.run_id)

    assert await finish(stage.database, claimed, ending(RunStatus.SUCCEEDED, "Done")) is not None

    assert await cancel(stage.database, claimed.run_id) is None
    assert (await stage.row(claimed.run_id)).output == "Done"
    assert await told(stage) == [("user", "?", None), ("assistant", "Done", None)]


async def test_cancelling_again_changes_nothing(stage: Stage) -> None:
    queued, running = await stage.query(**ALONE), (await begun(stage)).run_id
    for run_id in (queued, running):
        await cancel(stage.database, run_id)
        before = await stage.row(run_id)
        await cancel(stage.database, run_id)
        assert await stage.row(run_id) == before


async def test_a_query_that_interrupts_cancels_all_before_it_and_keeps_what_they_had(stage: Stage) -> None:
    running, queued = await begun(stage), await stage.query()

    new = await stage.query(query="new", strategy=Strategy.INTERRUPT)

    assert (await stage.row(queued)).status == "cancelled"
    assert (await stage.row(running.run_id)).cancel_requested_at is not None
    assert await claim(stage.database, new, await stage.worker(), isolated=False) is None
    await finish(stage.database, running, ending(RunStatus.CANCELLED, "So far"))
    await stage.claimed(new, await stage.worker())
    assert await told(stage) == [
        ("user", "?", None),
        ("assistant", "So far", "interrupted"),
        ("user", "?", None),
        ("user", "new", None),
    ]


@pytest.mark.parametrize("status", [RunStatus.CANCELLED, RunStatus.SUCCEEDED])
async def test_a_query_that_rolls_back_erases_what_was_before_it_however_that_ends(
    stage: Stage, status: RunStatus
) -> None:
    running, queued = await begun(stage), await stage.query()

    new = await stage.query(query="new", strategy=Strategy.ROLLBACK)
    await finish(stage.database, running, ending(status, "So far"))

    assert [(await stage.row(run_id)).status for run_id in (running.run_id, queued)] == [status, "cancelled"]
    assert await told(stage) == [("user", "new", None)]
    claimed = await stage.claimed(new, await stage.worker())
    assert await earlier_exchanges(stage.database, claimed, 1 << 20) == []


async def test_a_query_that_would_not_wait_is_refused_while_a_run_is_unfinished(stage: Stage) -> None:
    running = await begun(stage)

    with pytest.raises(ThreadBusy) as refusal:
        await stage.query(strategy=Strategy.REJECT)
    assert refusal.value.run_id == running.run_id
    assert await told(stage) == [("user", "?", None)]

    await finish(stage.database, running, ending(RunStatus.SUCCEEDED, "Done"))
    await stage.query(strategy=Strategy.REJECT)


async def test_queries_that_wait_are_answered_in_the_order_they_came_in(stage: Stage) -> None:
    runs = await asyncio.gather(*(stage.query(query=str(number)) for number in range(5)))
    by_seq = sorted([await stage.row(run_id) for run_id in runs], key=lambda row: row.seq)

    answered: list[UUID] = []
    while ring := await next_in_thread(stage.database, stage.thread_id):
        claimed = await stage.claimed(ring.run_id, await stage.worker())
        answered.append(ring.run_id)
        await finish(stage.database, claimed, ending(RunStatus.SUCCEEDED, claimed.query))

    assert answered == [row.id for row in by_seq]
    assert [content for role, content, _ in await told(stage) if role == "assistant"] == [row.query for row in by_seq]


async def test_nothing_is_asked_in_a_thread_that_was_deleted(stage: Stage) -> None:
    await stage.execute("UPDATE threads SET deleted_at = now()")

    with pytest.raises(NotFound):
        await stage.query()


async def at_the_deadline(stage: Stage, run_id: UUID, *, late_by_seconds: float) -> None:
    """Let a run's time be over."""
    statement = "UPDATE runs SET deadline_at = now() - make_interval(secs => :late) WHERE id = :id"
    await stage.execute(statement, id=run_id, late=late_by_seconds)


async def test_a_run_that_nobody_takes_fails_at_its_deadline(stage: Stage) -> None:
    run_id, in_time = await stage.query(**ALONE), await stage.query(**ALONE)
    await at_the_deadline(stage, run_id, late_by_seconds=0)

    assert await claim(stage.database, run_id, await stage.worker(), isolated=False) is None
    assert [row.id for row in await expire(stage.database)] == [run_id]

    row = await stage.row(run_id)
    assert (row.status, row.error["code"]) == ("failed", "deadline_exceeded")
    assert (await stage.row(in_time)).status == "queued"


async def test_a_worker_ends_its_run_at_the_deadline_with_what_there_is(client: Client) -> None:
    run = await client.run("60 seconds", agent_type="slow", deadline_s=1)
    ended = await client.ended(run["id"])
    created, finished = (datetime.fromisoformat(ended[name]) for name in ("created_at", "finished_at"))

    assert (ended["status"], ended["error"]["code"], ended["attempt"]) == ("failed", "deadline_exceeded", 1)
    assert ended["partial_output"].startswith("tick 1 ")
    assert finished - created < timedelta(seconds=OVERDUE_SECONDS)  # Then a sweeper does it.


async def test_a_run_whose_worker_does_not_end_it_fails_a_while_after_its_deadline(stage: Stage) -> None:
    claimed = await begun(stage)
    await at_the_deadline(stage, claimed.run_id, late_by_seconds=OVERDUE_SECONDS / 2)
    assert await expire(stage.database) == []

    await at_the_deadline(stage, claimed.run_id, late_by_seconds=OVERDUE_SECONDS)
    await expire(stage.database)

    row = await stage.row(claimed.run_id)
    assert (row.status, row.error["code"], row.partial_output) == ("failed", "deadline_exceeded", "So far")
    assert await finish(stage.database, claimed, ending(RunStatus.SUCCEEDED, "Too late")) is None


async def test_what_was_to_be_cancelled_does_not_fail_at_its_deadline(stage: Stage) -> None:
    claimed = await begun(stage)
    await cancel(stage.database, claimed.run_id)
    await at_the_deadline(stage, claimed.run_id, late_by_seconds=OVERDUE_SECONDS)

    await expire(stage.database)

    row = await stage.row(claimed.run_id)
    assert (row.status, row.error) == ("cancelled", None)
    assert await told(stage) == [("user", "?", None), ("assistant", "So far", "interrupted")]


async def test_a_receipt_is_given_only_once_the_run_has_ended(stage: Stage, service: Service) -> None:
    claimed = await begun(stage)
    worker_id = (await stage.row(claimed.run_id)).worker_id
    api = service.api()
    async with Client(api.url, user_id=str(stage.user_id)) as client:
        path = f"/runs/{claimed.run_id}/cancel"
        following = asyncio.create_task(client.events(str(claimed.run_id)))
        unheard = await client.http.post(path, params={"wait": 0.3})
        waiting = asyncio.create_task(client.http.post(path, params={"wait": 60}))
        await declare_dead(stage.database, worker_id)  # The API's own sweeper sees to the rest.
        receipt, again = await waiting, await client.http.post(path)
        events = await following

    assert (unheard.status_code, unheard.json()["status"]) == (202, "running")
    assert (receipt.status_code, receipt.json()["status"]) == (200, "cancelled")
    assert (again.status_code, again.json()) == (200, receipt.json())
    assert receipt.json()["partial_output"] == "So far"
    assert receipt.json()["usage"] == whole_usage({"requests": 1})
    assert names(events)[-2:] == ["cancelled", "done"]


@pytest.mark.parametrize("on_disconnect", ["cancel", "continue"])
@pytest.mark.parametrize("way", ["query", "stream"])
async def test_what_hanging_up_means_is_for_the_caller_to_say(client: Client, way: str, on_disconnect: str) -> None:
    seconds = 30 if on_disconnect == "cancel" else 1
    asked = {"agent_type": "slow", "query": f"{seconds} seconds", "on_disconnect": on_disconnect}
    calling = asyncio.create_task(client.http.post(f"/agent/{way}", json=asked))
    while not (runs := (await client.http.get("/runs")).json()["items"]):  # noqa: ASYNC110  (another process)
        await asyncio.sleep(0.05)

    calling.cancel()

    ended = await client.ended(runs[0]["id"])
    assert ended["status"] == ("cancelled" if on_disconnect == "cancel" else "succeeded")
