"""The arrows of a run's life, each a guarded statement: who comes too late, or out of turn, writes nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from agent_relay.shared.database.tables import AttemptReason, RunStatus
from agent_relay.shared.maintenance.liveness import UptimeWindow
from agent_relay.shared.runs.cancel import cancel
from agent_relay.shared.runs.claim import claim, claim_many
from agent_relay.shared.runs.finish import Ending, finish, give_back, let_go
from agent_relay.shared.runs.recovery import declare_dead, judge_workers, take_back
from agent_relay.shared.schemas import error_of
from tests.support.stage import Stage

MAX_CRASHES = 3


def answer(words: str) -> Ending:
    """A success."""
    return Ending(status=RunStatus.SUCCEEDED, text=words, last_entry=1, usage={"requests": 1})


async def test_an_attempt_that_was_overtaken_finishes_nothing(stage: Stage) -> None:
    run_id, worker_id = await stage.query(), await stage.worker()
    first = await stage.claimed(run_id, worker_id)
    assert await let_go(stage.database, run_id, first.attempt)
    second = await stage.claimed(run_id, worker_id)

    assert await finish(stage.database, first, answer("of the first")) is None
    assert await give_back(stage.database, first, {}, AttemptReason.WORKER_STOPPING) is None
    assert await finish(stage.database, second, answer("of the second")) is not None
    assert await finish(stage.database, second, answer("once more")) is None

    assert await stage.answers() == ["of the second"]


async def test_a_run_is_claimed_once(stage: Stage) -> None:
    run_id = await stage.query()
    await stage.claimed(run_id, await stage.worker())

    assert await claim(stage.database, run_id, await stage.worker(), isolated=False) is None


async def test_a_run_is_not_claimed_before_the_one_before_it_has_ended(stage: Stage) -> None:
    first, second, worker_id = await stage.query(), await stage.query(), await stage.worker()

    assert await claim(stage.database, second, worker_id, isolated=False) is None
    claimed = await stage.claimed(first, worker_id)
    assert await claim(stage.database, second, worker_id, isolated=False) is None
    await finish(stage.database, claimed, answer("first"))

    assert await claim(stage.database, second, worker_id, isolated=False) is not None


@pytest.mark.parametrize("death", ["ended", "lapsed"])
async def test_the_dead_claim_nothing(stage: Stage, death: str) -> None:
    run_id, worker_id = await stage.query(), await stage.worker(lease_seconds=-1 if death == "lapsed" else 60)
    if death == "ended":
        await declare_dead(stage.database, worker_id)

    assert await claim(stage.database, run_id, worker_id, isolated=False) is None


async def test_the_database_itself_refuses_two_running_runs_of_a_thread(stage: Stage) -> None:
    await stage.claimed(await stage.query(), await stage.worker())
    second = await stage.query()

    with pytest.raises(IntegrityError, match="one_running_run_a_thread"):
        await stage.execute("UPDATE runs SET status = 'running' WHERE id = :id", id=second)


async def test_only_a_lease_that_has_run_out_is_judged(stage: Stage) -> None:
    await stage.worker()
    lapsed = await stage.worker(lease_seconds=-1)

    assert await judge_workers(stage.database) == [lapsed]
    assert await judge_workers(stage.database) == []


async def test_a_run_of_the_dead_is_a_suspect_and_has_a_budget(stage: Stage) -> None:
    run_id = await stage.query()
    for crashes in range(1, MAX_CRASHES):
        worker_id = await stage.worker()
        await stage.claimed(run_id, worker_id, isolated=crashes > 1)
        await declare_dead(stage.database, worker_id)
        _, waiting = await take_back(stage.database, MAX_CRASHES)
        assert [ring.run_id for ring in waiting] == [run_id]
        assert (await stage.row(run_id)).crashes == crashes
        assert await claim(stage.database, run_id, await stage.worker(), isolated=False) is None

    last = await stage.worker()
    await stage.claimed(run_id, last, isolated=True)
    await declare_dead(stage.database, last)
    ended, _ = await take_back(stage.database, MAX_CRASHES)

    assert [(row.id, error_of(row.error).code) for row in ended] == [(run_id, "worker_crashed")]


async def test_giving_back_is_no_crash(stage: Stage) -> None:
    run_id = await stage.query()
    for _ in range(MAX_CRASHES + 1):
        claimed = await stage.claimed(run_id, await stage.worker())
        assert await give_back(stage.database, claimed, {}, AttemptReason.WORKER_STOPPING)

    row = await stage.row(run_id)
    assert (row.status, row.crashes, row.attempt) == ("queued", 0, MAX_CRASHES + 1)


async def test_a_stored_answer_wins_over_a_cancel_that_came_too_late(stage: Stage) -> None:
    run_id = await stage.query()
    await finish(stage.database, await stage.claimed(run_id, await stage.worker()), answer("yes"))

    assert await cancel(stage.database, run_id) is None
    assert (await stage.row(run_id)).status == "succeeded"


async def test_a_run_that_is_to_be_cancelled_is_not_given_back(stage: Stage) -> None:
    run_id = await stage.query()
    claimed = await stage.claimed(run_id, await stage.worker())
    await cancel(stage.database, run_id)

    assert await give_back(stage.database, claimed, {}, AttemptReason.WORKER_STOPPING) is None
    assert (await stage.row(run_id)).status == "running"


def test_a_lease_is_judged_only_over_a_lease_of_unbroken_database() -> None:
    unbroken, at = UptimeWindow(15), datetime(2026, 1, 1, tzinfo=UTC)
    judged: list[bool] = []
    for second in [*range(16), *range(40, 56)]:  # It was away in between.
        unbroken.answered(at + timedelta(seconds=second))
        judged.append(unbroken.for_a_lease)

    assert judged == ([False] * 15 + [True]) * 2
    unbroken.broke()
    assert not unbroken.for_a_lease


async def test_the_first_request_of_an_attempt_counts_from_its_claim(stage: Stage) -> None:
    """Its worker may die before it can report it."""
    run_id, worker_id = await stage.query(), await stage.worker()

    first = await stage.claimed(run_id, worker_id)
    assert (first.usage["requests"], (await stage.row(run_id)).usage["requests"]) == (0, 1)
    await stage.execute("UPDATE runs SET usage = usage || '{\"input_tokens\": 7}' WHERE id = :id", id=run_id)
    await declare_dead(stage.database, worker_id)
    await take_back(stage.database, max_crashes=5)
    (second,) = (await claim_many(stage.database, [(run_id, await stage.worker())], isolated=True)).values()

    assert second.usage == {"requests": 1, "input_tokens": 7}
    assert (await stage.row(run_id)).usage == {"requests": 2, "input_tokens": 7}
