"""Messages into runs: what a finished step holds stays with its run, whatever ends the run; the rest are runs."""

from __future__ import annotations

from uuid import UUID

import pytest

from agent_relay.shared.database.tables import AttemptReason
from agent_relay.shared.runs.accept import Query
from agent_relay.shared.runs.cancel import cancel
from agent_relay.shared.runs.finish import give_back, let_go
from agent_relay.shared.runs.into_run import messages_into, send, state_of_message
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.runs.recovery import expire, expire_waiting
from agent_relay.shared.runs.steps import FinishedSteps, Step, keep_steps
from agent_relay.shared.runs.wait import Wait, wait
from agent_relay.shared.settings import Settings
from tests.support.stage import Stage


async def sent(stage: Stage, run_id: UUID, query: str) -> UUID:
    """Send a message into a run; returns its id."""
    settings = Settings(database_url="postgresql://nowhere/x", redis_url="redis://nowhere")
    asked = Query(
        tenant="acme", user_id=stage.user_id, thread_id=None, agent_type=None, query=query, deadline_seconds=60
    )
    return (await send(stage.database, run_id, asked, None, Admission(settings))).message_id


@pytest.mark.parametrize("end", ["cancel", "crash", "deadline", "overdue wait"])
async def test_what_a_finished_step_holds_stays_with_its_run_whatever_ends_it(stage: Stage, end: str) -> None:
    claimed = await stage.claimed(await stage.query(), await stage.worker())
    first, second = [await sent(stage, claimed.run_id, query) for query in ("first", "second")]
    steps = [Step("v1", "[]", {"requests": 1}, heard=1)]
    assert await keep_steps(stage.database, FinishedSteps(claimed.run_id, claimed.attempt, 1, steps))
    match end:
        case "cancel":
            await give_back(stage.database, claimed, {}, AttemptReason.WORKER_STOPPING)
            await cancel(stage.database, claimed.run_id)
        case "crash":
            await let_go(stage.database, claimed.run_id, claimed.attempt, max_crashes=1)
        case "deadline":
            await give_back(stage.database, claimed, {}, AttemptReason.WORKER_STOPPING)
            await stage.execute("UPDATE runs SET deadline_at = now() - interval '1 hour'")
            await expire(stage.database)
        case _:
            left = Wait(text=None, last_entry=1, usage={}, transcript="[]", calls=[], heard=1)
            assert await wait(stage.database, claimed, left, 0) is not None
            await expire_waiting(stage.database)

    assert (await stage.row(claimed.run_id)).finished_at is not None
    queries = {row.query for row in await stage.execute("SELECT query FROM runs WHERE finished_at IS NULL")}
    assert queries == {"second"}
    states = [await state_of_message(stage.database, message_id) for message_id in (first, second)]
    assert [state.status for state in states] == ["enqueued", "queued"]
    assert states[0].run_id == claimed.run_id != states[1].run_id
    [row] = await stage.execute("SELECT run_id, place FROM messages WHERE id = :id", id=second)
    assert (row.run_id, row.place) == (states[1].run_id, 0)


async def test_only_the_attempt_that_holds_a_run_reads_what_was_sent_into_it(stage: Stage) -> None:
    run_id, worker_id = await stage.query(), await stage.worker()
    former = await stage.claimed(run_id, worker_id)
    first, second = [await sent(stage, run_id, query) for query in ("first", "second")]
    await let_go(stage.database, run_id, former.attempt)
    claimed = await stage.claimed(run_id, worker_id)

    assert claimed.last_message == 2
    assert [message.id for message in await messages_into(stage.database, claimed, 0)] == [first, second]
    assert [message.id for message in await messages_into(stage.database, claimed, 1)] == [second]
    assert await messages_into(stage.database, former, 0) == []
