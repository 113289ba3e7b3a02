"""How much may run at once: who has as many as may waits for one of them to end, and holds up nobody else."""

from __future__ import annotations

import asyncio
import itertools
from uuid import UUID

import httpx
import pytest

from agent_relay.shared.clock import new_id
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.runs.claim import Claim, claim
from agent_relay.shared.runs.concurrency_limits import Quota
from agent_relay.shared.runs.finish import Ending, finish
from tests.support.client import Client
from tests.support.service import Service
from tests.support.stage import Stage

STATELESS = {"thread_id": None, "agent_type": "echo"}


async def end(stage: Stage, claimed: Claim) -> None:
    """End a run."""
    ending = Ending(status=RunStatus.SUCCEEDED, text="ok", last_entry=1, usage={})
    assert await finish(stage.database, claimed, ending) is not None


async def take(stage: Stage, run_id: UUID, worker_id: UUID, quota: Quota) -> Claim | None:
    """Claim a run, if it is to be had."""
    return await claim(stage.database, run_id, worker_id, isolated=False, quota=quota)


@pytest.mark.parametrize("quota", [Quota(of_user=3), Quota(of_tenant=3), Quota(of_user=3, of_tenant=3)])
async def test_however_many_are_claimed_at_once_no_more_run_than_may(stage: Stage, quota: Quota) -> None:
    worker_id = await stage.worker()
    runs = [await stage.query(**STATELESS) for _ in range(10)]
    claims = await asyncio.gather(*(take(stage, run_id, worker_id, quota) for run_id in runs))

    taken = [claimed for claimed in claims if claimed is not None]
    assert len(taken) == 3
    waiting = [run_id for run_id, claimed in zip(runs, claims, strict=True) if claimed is None]
    assert [(row := await stage.row(run_id)).due_at == row.deadline_at for run_id in waiting] == [True] * 7
    for claimed in taken:
        await end(stage, claimed)
        (ring,) = await quota.release(stage.database, claimed.run_id, "acme")
        assert ring.run_id == waiting.pop(0)
        assert await take(stage, ring.run_id, worker_id, quota) is not None


async def test_a_user_who_has_as_many_as_may_run_holds_up_nobody_else(stage: Stage) -> None:
    worker_id, quota = await stage.worker(), Quota(of_user=1)
    first, second, third = [await stage.query(**STATELESS) for _ in range(3)]
    claimed = await stage.claimed(first, worker_id)
    assert await take(stage, second, worker_id, quota) is None
    assert await take(stage, third, worker_id, quota) is None
    await stage.execute("UPDATE runs SET user_id = :other WHERE id = :id", other=new_id(), id=third)

    (ring,) = await quota.release_forgotten(stage.database)
    assert ring.run_id == third
    assert await quota.release_forgotten(stage.database) == []
    await end(stage, claimed)
    (ring,) = await quota.release_forgotten(stage.database)
    assert ring.run_id == second


async def test_runs_of_batches_neither_count_nor_are_passed_over(stage: Stage) -> None:
    worker_id, quota = await stage.worker(), Quota(of_user=1, of_tenant=1)
    runs = [await stage.query(**STATELESS) for _ in range(3)]
    await stage.execute("UPDATE runs SET lane = 'batch' WHERE id = ANY(:runs)", runs=runs[:2])

    assert [await take(stage, run_id, worker_id, quota) is not None for run_id in runs] == [True] * 3


async def test_where_the_limit_is_gone_nothing_waits_for_it(stage: Stage) -> None:
    worker_id, quota = await stage.worker(), Quota(of_user=1)
    runs = [await stage.query(**STATELESS) for _ in range(4)]
    assert [await take(stage, run_id, worker_id, quota) is not None for run_id in runs] == [True, False, False, False]

    assert [ring.run_id for ring in await Quota().release_forgotten(stage.database)] == runs[1:]


async def test_the_runs_of_a_user_take_turns_while_another_does_not_wait(service: Service) -> None:
    api = service.api(MAX_RUNNING_PER_USER="1")
    service.worker(MAX_RUNNING_PER_USER="1", BEAT_SECONDS="1")
    async with Client(api.url) as one, Client(api.url) as other:
        runs = [await one.run("0.3 seconds", agent_type="slow") for _ in range(4)]
        assert (await other.ask("hello", agent_type="echo")).status_code == httpx.codes.OK
        ended = [await one.ended(run["id"]) for run in runs]

    assert [run["status"] for run in ended] == ["succeeded"] * 4
    in_time = sorted(ended, key=lambda run: run["started_at"])
    assert all(before["finished_at"] <= after["started_at"] for before, after in itertools.pairwise(in_time))
