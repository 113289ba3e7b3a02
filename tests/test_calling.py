"""Whoever ends a run, or gives it back, calls for whoever comes next: nobody waits for a sweep."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from shared.runs import Ending, Quota, claim
from shared.settings import Settings
from shared.tables import Begun, RunStatus
from tests.stage import Stage
from tests.test_lost_replies import Rung
from worker.attempt import Attempt
from worker.job import Job

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
    return Job(settings, stage.database, lanes, cast("Any", publisher), cast("Any", roster), nothing, nothing, {})


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
    stopped = SimpleNamespace(claimed=claimed, usage={}, begun_next=Begun.WORKER_STOPPING)

    await job._conclude(cast("Attempt", stopped), None)  # pyright: ignore[reportPrivateUsage]

    assert [(ring.run_id, ring.first) for ring in lanes.rung] == [(claimed.run_id, True)]
