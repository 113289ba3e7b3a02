"""Finished steps are stored once, in their order, and only by the attempt that holds the run."""

from __future__ import annotations

import asyncio

from sqlalchemy import text

from agent_relay.shared.runs.claim import Claim
from agent_relay.shared.runs.finish import let_go
from agent_relay.shared.runs.steps import FinishedSteps, Step, forget_steps, keep_steps, keep_steps_of_many, steps_of
from tests.support.stage import Stage

USED: dict[str, float] = {"requests": 1}


def finished(claimed: Claim, *messages: str, first_place: int = 1) -> FinishedSteps:
    """Steps of an attempt."""
    return FinishedSteps(claimed.run_id, claimed.attempt, first_place, [Step("v1", each, USED) for each in messages])


async def test_steps_are_read_in_the_order_in_which_they_were_finished(stage: Stage) -> None:
    claimed = await stage.claimed(await stage.query(), await stage.worker())

    assert await keep_steps(stage.database, finished(claimed, "[1]", "[2]"))
    assert await keep_steps(stage.database, finished(claimed, "[3]", first_place=3))

    assert await steps_of(stage.database, claimed.run_id) == [Step("v1", each, USED) for each in ("[1]", "[2]", "[3]")]


async def test_a_step_is_stored_once_however_often_its_attempt_offers_it(stage: Stage) -> None:
    claimed = await stage.claimed(await stage.query(), await stage.worker())

    assert await keep_steps(stage.database, finished(claimed, "[1]"))
    assert await keep_steps(stage.database, finished(claimed, "[1]"))
    assert await keep_steps_of_many(stage.database, [finished(claimed, "[1]")]) == {claimed.run_id: True}

    assert len(await steps_of(stage.database, claimed.run_id)) == 1


async def test_an_attempt_that_was_overtaken_stores_and_forgets_no_step(stage: Stage) -> None:
    run_id, worker_id = await stage.query(), await stage.worker()
    first = await stage.claimed(run_id, worker_id)
    await keep_steps(stage.database, finished(first, "[1]"))
    await let_go(stage.database, run_id, first.attempt)
    assert not await keep_steps(stage.database, finished(first, "[2]", first_place=2))  # It waits again.
    await stage.claimed(run_id, worker_id)

    assert not await keep_steps(stage.database, finished(first, "[2]", first_place=2))
    assert await keep_steps_of_many(stage.database, [finished(first, "[2]", first_place=2)]) == {}
    await forget_steps(stage.database, first)

    assert [step.messages for step in await steps_of(stage.database, run_id)] == ["[1]"]


async def test_a_step_whose_attempt_is_being_overtaken_is_not_stored(stage: Stage) -> None:
    first = await stage.claimed(await stage.query(), await stage.worker())
    async with stage.database.connect() as connection:
        await connection.execute(text("UPDATE runs SET attempt = attempt + 1"))
        storing = asyncio.create_task(keep_steps(stage.database, finished(first, "[1]")))
        together = await keep_steps_of_many(stage.database, [finished(first, "[1]")])  # It waits for nobody.
        await connection.commit()

    assert together == {}
    assert not await storing
    assert await steps_of(stage.database, first.run_id) == []


async def test_steps_of_many_runs_are_stored_together_but_for_those_of_others(stage: Stage) -> None:
    worker_id = await stage.worker()
    stateless = {"thread_id": None, "agent_type": "echo"}
    mine, other = [await stage.claimed(await stage.query(**stateless), worker_id) for _ in range(2)]
    await let_go(stage.database, other.run_id, other.attempt)

    stored = await keep_steps_of_many(stage.database, [finished(mine, "[1]", "[2]"), finished(other, "[1]")])

    assert stored == {mine.run_id: True}
    assert [len(await steps_of(stage.database, run_id)) for run_id in (mine.run_id, other.run_id)] == [2, 0]


async def test_steps_are_deleted_with_their_run_and_where_it_begins_again(stage: Stage) -> None:
    worker_id = await stage.worker()
    claimed = await stage.claimed(await stage.query(), worker_id)
    await keep_steps(stage.database, finished(claimed, "[1]"))

    await forget_steps(stage.database, claimed)
    assert await steps_of(stage.database, claimed.run_id) == []

    await keep_steps(stage.database, finished(claimed, "[1]"))
    await stage.execute("DELETE FROM runs")
    assert await steps_of(stage.database, claimed.run_id) == []


async def test_crashes_count_until_a_step_is_finished(stage: Stage) -> None:
    claimed = await stage.claimed(await stage.query(), await stage.worker())
    await stage.execute("UPDATE runs SET crashes = 2")

    assert await keep_steps(stage.database, finished(claimed, "[1]"))

    assert (await stage.row(claimed.run_id)).crashes == 0
