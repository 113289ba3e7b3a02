"""A batch's counts are true after every arrow of its runs' lives, and its results have places without holes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agent_relay.api.batches.queries import batch_with_results, owned_batch
from agent_relay.api.requests.identity import Owner
from agent_relay.shared.batches.accept import Accepted, Submission, accept
from agent_relay.shared.batches.cancel import begin_to_cancel, cancel_some
from agent_relay.shared.batches.concurrency import release, with_room
from agent_relay.shared.batches.retry import retry
from agent_relay.shared.batches.spool import Spool
from agent_relay.shared.clock import new_id
from agent_relay.shared.database.tables import AttemptReason, RunStatus
from agent_relay.shared.errors import BatchUnfinished, NothingFailed
from agent_relay.shared.runs.cancel import cancel
from agent_relay.shared.runs.claim import Claim, claim
from agent_relay.shared.runs.finish import Ending, finish, give_back, let_go
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.runs.recovery import declare_dead, expire, take_back
from agent_relay.shared.schemas import batch_of, counts_of, usage_of, whole_usage
from agent_relay.shared.settings import Settings

RUN_SECONDS = 600.0
MAX_CRASHES = 3
ADMISSION = Admission(Settings(database_url="postgresql://nowhere/none", redis_url="redis://nowhere"))


class Stage:
    """A database with an agent and a worker."""

    def __init__(self, database: AsyncEngine) -> None:
        self.database = database
        self.owner = Owner("acme", new_id())
        self.worker_id = new_id()

    async def execute(self, statement: str, **values: Any) -> Any:
        """Run a statement; returns its rows, if it has any."""
        async with self.database.begin() as connection:
            result = await connection.execute(text(statement), values)
            return result.all() if result.returns_rows else None

    async def worker(self) -> UUID:
        """Register a worker."""
        worker_id = new_id()
        await self.execute(
            "INSERT INTO workers (id, pool, host, pid, version, slots, lease_until) "
            "VALUES (:id, 'default', 'here', 1, '0', 1, now() + interval '1 minute')",
            id=worker_id,
        )
        return worker_id

    async def submit(self, count: int, **rest: Any) -> Accepted:
        """Submit a batch."""
        said: dict[str, Any] = {"deadline_seconds": 60, "run_seconds": RUN_SECONDS, **rest}
        asked = Submission(tenant=self.owner.tenant, user_id=self.owner.user_id, agent_type="echo", **said)
        with Spool() as items:
            for number in range(count):
                items.add(f"row-{number}", f"query {number}", {})
            return await accept(self.database, asked, items, ADMISSION)

    async def runs(self, accepted: Accepted) -> list[UUID]:
        """Name the runs of a batch in the order of its items."""
        rows = await self.execute("SELECT id FROM runs WHERE batch_id = :id ORDER BY id", id=accepted.batch.id)
        return [row.id for row in rows]

    async def claimed(self, run_id: UUID, *, isolated: bool = False) -> Claim:
        """Claim a run that is to be had."""
        claimed = await claim(self.database, run_id, self.worker_id, isolated=isolated)
        assert claimed is not None
        return claimed

    async def end(self, claimed: Claim, status: RunStatus = RunStatus.SUCCEEDED, **usage: float) -> None:
        """Finish a run."""
        assert await finish(self.database, claimed, Ending(status=status, text="said", last_entry=1, usage=usage))

    async def counts(self, accepted: Accepted) -> dict[str, int]:
        """Read the counts that are not zero, and check them against the rows."""
        row = await owned_batch(self.database, self.owner, accepted.batch.id)
        counts = counts_of(row).model_dump()
        rows = await self.execute(
            "SELECT status, count(*) AS runs FROM runs WHERE batch_id = :id GROUP BY status", id=accepted.batch.id
        )
        assert {status: n for status, n in counts.items() if n and status != "total"} == dict(map(tuple, rows))
        used = await self.execute(
            "SELECT usage FROM runs WHERE batch_id = :id AND finished_at IS NOT NULL", id=accepted.batch.id
        )
        for kind, count in (await self.usage(accepted)).items():
            each = [usage_of(usage)[kind] for (usage,) in used if kind in usage_of(usage)]
            assert count == (pytest.approx(sum(each)) if each or kind != "cost_usd" else None), kind
        return {status: n for status, n in counts.items() if n and status != "total"}

    async def results(self, accepted: Accepted, after: int = 0) -> list[tuple[int, UUID]]:
        """Read the places of results, and whose they are."""
        _, rows = await batch_with_results(
            self.database, accepted.batch.id, after=after, limit=1000, most_bytes=1 << 20
        )
        return [(row.place, row.run_id) for row in rows]

    async def usage(self, accepted: Accepted) -> dict[str, Any]:
        """Read what the runs of a batch that have ended used."""
        return batch_of(await owned_batch(self.database, self.owner, accepted.batch.id)).usage.model_dump()

    async def status(self, accepted: Accepted) -> str:
        """Read where a batch is in its life."""
        return (await owned_batch(self.database, self.owner, accepted.batch.id)).status


@pytest.fixture
async def stage(database_url: str) -> AsyncGenerator[Stage]:
    """A stage of the test's own."""
    database = create_async_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    stage = Stage(database)
    await stage.execute(
        "INSERT INTO agents (agent_type, pool, description, output_schema, text_output)"
        " VALUES ('echo', 'default', '', '{}', true)"
    )
    stage.worker_id = await stage.worker()
    yield stage
    await database.dispose()


async def test_every_arrow_is_counted(stage: Stage) -> None:
    accepted = await stage.submit(9)
    runs = await stage.runs(accepted)
    assert await stage.counts(accepted) == {"queued": 9}

    claims = [await stage.claimed(run) for run in runs[:6]]
    assert await stage.counts(accepted) == {"queued": 3, "running": 6}

    assert await stage.usage(accepted) == whole_usage({})
    await stage.end(claims[0], requests=2, input_tokens=100, output_tokens=10, cost_usd=0.25)
    await stage.end(claims[1], RunStatus.FAILED, requests=1, input_tokens=50, tool_calls=3)
    assert await give_back(stage.database, claims[2], {"requests": 8}, AttemptReason.WORKER_STOPPING)
    used = whole_usage({"requests": 3, "input_tokens": 150, "output_tokens": 10, "tool_calls": 3, "cost_usd": 0.25})
    assert await stage.usage(accepted) == used
    assert await let_go(stage.database, claims[3].run_id, claims[3].attempt)
    assert await stage.counts(accepted) == {"queued": 5, "running": 2, "succeeded": 1, "failed": 1}

    assert await cancel(stage.database, runs[8])
    assert await cancel(stage.database, runs[5])
    await stage.end(claims[5], RunStatus.CANCELLED, requests=1, cost_usd=0.5)
    assert await stage.counts(accepted) == {"queued": 4, "running": 1, "succeeded": 1, "failed": 1, "cancelled": 2}

    await declare_dead(stage.database, stage.worker_id)
    await take_back(stage.database, MAX_CRASHES)
    assert await stage.counts(accepted) == {"queued": 5, "succeeded": 1, "failed": 1, "cancelled": 2}

    stage.worker_id = await stage.worker()
    await stage.claimed(runs[6])
    assert await cancel(stage.database, runs[6])
    await declare_dead(stage.database, stage.worker_id)
    await take_back(stage.database, MAX_CRASHES)
    assert await stage.counts(accepted) == {"queued": 4, "succeeded": 1, "failed": 1, "cancelled": 3}

    stage.worker_id = await stage.worker()
    await stage.claimed(runs[7])
    await declare_dead(stage.database, stage.worker_id)
    await take_back(stage.database, max_crashes=1)
    assert await stage.counts(accepted) == {"queued": 3, "succeeded": 1, "failed": 2, "cancelled": 3}
    assert await stage.status(accepted) == "in_progress"

    await stage.execute("UPDATE runs SET deadline_at = now() WHERE batch_id = :id", id=accepted.batch.id)
    assert len(await expire(stage.database)) == 3
    assert await stage.counts(accepted) == {"succeeded": 1, "failed": 5, "cancelled": 3}
    of_lost_attempts = 4
    assert await stage.usage(accepted) == used | {"requests": 3 + 8 + 1 + of_lost_attempts, "cost_usd": 0.75}
    assert await stage.status(accepted) == "completed"
    ended = [runs[0], runs[1], runs[8], runs[5], runs[6], runs[7]]
    results = await stage.results(accepted)
    assert results[:6] == list(enumerate(ended, 1))
    assert [place for place, _ in results] == list(range(1, 10))
    assert {run for _, run in results} == set(runs)


async def test_a_run_ends_and_is_counted_whatever_stands_in_its_usage(stage: Stage) -> None:
    accepted = await stage.submit(3)
    odd = ["null", '{"requests": "many", "cost_usd": {}, "tool_calls": true}', '{"requests": 1e300, "other": 1}']
    for run, usage in zip(await stage.runs(accepted), odd, strict=True):
        end = "UPDATE runs SET status = 'succeeded', finished_at = now(), usage = CAST(:usage AS jsonb) WHERE id = :id"
        await stage.execute(end, id=run, usage=usage)

    assert await stage.status(accepted) == "completed"
    assert await stage.usage(accepted) == whole_usage({"requests": 10**300})


async def test_whoever_has_seen_a_place_has_seen_all_before_it(stage: Stage) -> None:
    accepted = await stage.submit(2)
    runs = await stage.runs(accepted)
    end = text("UPDATE runs SET status = 'succeeded', finished_at = now() WHERE id = :id")
    async with stage.database.connect() as early, stage.database.connect() as late:
        await late.execute(text("SET LOCAL lock_timeout = '5s'"))
        await early.execute(end, {"id": runs[0]})
        await late.execute(end, {"id": runs[1]})  # Nothing is locked by an end that is not committed.
        await late.commit()
        assert await stage.results(accepted) == [(1, runs[1])]
        assert await stage.counts(accepted) == {"queued": 1, "succeeded": 1}
        await early.commit()

    assert await stage.results(accepted, after=1) == [(2, runs[0])]


async def test_sweepers_that_end_runs_of_the_same_batches_do_not_wait_for_each_other(stage: Stage) -> None:
    batches = [await stage.submit(2), await stage.submit(2)]
    one, other = zip(*[await stage.runs(accepted) for accepted in batches], strict=True)
    for seconds, run in enumerate([*one, *reversed(other)]):
        deadline = f"now() - interval '1 hour' + interval '{seconds} seconds'"
        await stage.execute(f"UPDATE runs SET deadline_at = {deadline} WHERE id = :id", id=run)
    async with stage.database.connect() as elsewhere, stage.database.connect() as gate:
        await elsewhere.execute(text("SELECT FROM runs WHERE id = ANY(:ids) FOR UPDATE"), {"ids": list(other)})
        await gate.execute(text("SELECT FROM batches WHERE id = :id FOR UPDATE"), {"id": batches[0].batch.id})
        sweeps = [asyncio.create_task(expire(stage.database))]  # The first batch's, then the second's.
        await waiting_for_locks(stage, 1)
        await elsewhere.rollback()
        sweeps.append(asyncio.create_task(expire(stage.database)))  # The other way round.
        await waiting_for_locks(stage, 2)
        await gate.rollback()

    assert sorted([len(ended) for ended in await asyncio.gather(*sweeps)]) == [2, 2]
    assert [await stage.status(accepted) for accepted in batches] == ["completed"] * 2


async def waiting_for_locks(stage: Stage, count: int) -> None:
    """Wait until so many connections wait for others."""
    waiting = (
        "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(30):
        while (await stage.execute(waiting))[0].n != count:  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.02)


async def test_an_end_that_is_rolled_back_leaves_no_hole(stage: Stage) -> None:
    accepted = await stage.submit(2)
    runs = await stage.runs(accepted)
    async with stage.database.connect() as connection:
        await connection.execute(
            text("UPDATE runs SET status = 'succeeded', finished_at = now() WHERE id = :id"), {"id": runs[0]}
        )
        await connection.rollback()
    await stage.end(await stage.claimed(runs[1]))

    assert await stage.results(accepted) == [(1, runs[1])]


async def test_readers_of_a_batch_that_many_end_at_once_see_only_beginnings(stage: Stage) -> None:
    accepted = await stage.submit(200)
    claims = [await stage.claimed(run) for run in await stage.runs(accepted)]
    seen: list[tuple[int, UUID]] = []

    async def ends(some: list[Claim]) -> None:
        for claimed in some:
            await stage.end(claimed)

    async def follow() -> None:
        while len(seen) < 200:
            batch, rows = await batch_with_results(
                stage.database, accepted.batch.id, after=len(seen), limit=50, most_bytes=1 << 20
            )
            assert batch is not None
            seen.extend((row.place, row.run_id) for row in rows)
            assert len(seen) >= min(batch.succeeded, len(seen) + 50)

    await asyncio.gather(follow(), *(ends(claims[first::4]) for first in range(4)))

    assert [place for place, _ in seen] == list(range(1, 201))
    assert len({run for _, run in seen}) == 200
    assert await stage.status(accepted) == "completed"


async def test_a_run_of_a_batch_has_its_time_from_when_it_begins(stage: Stage) -> None:
    accepted = await stage.submit(1, run_seconds=5, deadline_seconds=1000)
    [run] = await stage.runs(accepted)
    await stage.execute("UPDATE runs SET created_at = now() - interval '10 minutes'")

    claimed = await stage.claimed(run)
    assert claimed.seconds_left == 5

    await give_back(stage.database, claimed, {}, AttemptReason.WORKER_STOPPING)
    assert (await stage.claimed(run)).seconds_left == 5


async def test_a_run_of_a_batch_ends_with_the_batch(stage: Stage) -> None:
    accepted = await stage.submit(1, deadline_seconds=50)
    [run] = await stage.runs(accepted)

    assert 40 < (await stage.claimed(run)).seconds_left <= 50


async def test_only_so_many_runs_of_a_batch_are_to_be_had_at_once(stage: Stage) -> None:
    accepted = await stage.submit(7, max_running=3)
    runs = await stage.runs(accepted)
    assert [ring.run_id for ring in accepted.rings()] == runs[:3]
    claims = [await claim(stage.database, run, stage.worker_id, isolated=False) for run in runs]
    assert [claimed is not None for claimed in claims] == [True] * 3 + [False] * 4
    assert await release(stage.database, accepted.batch.id) == []
    assert await with_room(stage.database) == []

    assert claims[0] is not None
    await stage.end(claims[0])
    assert await with_room(stage.database) == [accepted.batch.id]
    assert [ring.run_id for ring in await release(stage.database, accepted.batch.id)] == [runs[3]]

    assert claims[1] is not None
    await give_back(stage.database, claims[1], {}, AttemptReason.WORKER_STOPPING)
    assert await release(stage.database, accepted.batch.id) == []
    await stage.claimed(runs[3])
    await cancel(stage.database, runs[1])
    assert [ring.run_id for ring in await release(stage.database, accepted.batch.id)] == [runs[4]]
    await stage.claimed(runs[4])
    assert await stage.counts(accepted) == {"queued": 2, "running": 3, "succeeded": 1, "cancelled": 1}


async def test_of_several_who_see_room_in_a_batch_one_fills_it(stage: Stage) -> None:
    accepted = await stage.submit(3, max_running=1)
    runs = await stage.runs(accepted)
    await cancel(stage.database, runs[0])
    async with stage.database.connect() as early:
        rows = await early.execute(text("SELECT id FROM release_in_batch(:id)"), {"id": accepted.batch.id})
        late = asyncio.create_task(release(stage.database, accepted.batch.id))
        await asyncio.wait([late], timeout=0.5)
        await early.commit()

    assert [row.id for row in rows] == [runs[1]]
    assert await late == []


async def test_a_batch_that_is_cancelled_starts_nothing_and_ends_what_waits(stage: Stage) -> None:
    accepted = await stage.submit(5, max_running=3)
    runs = await stage.runs(accepted)
    claimed = await stage.claimed(runs[0])

    await begin_to_cancel(stage.database, accepted.batch.id)
    assert await stage.status(accepted) == "cancelling"
    assert await claim(stage.database, runs[1], stage.worker_id, isolated=False) is None
    assert await release(stage.database, accepted.batch.id) == []

    step = await cancel_some(stage.database, accepted.batch.id)
    assert step is not None
    assert {ring.run_id for ring in step.silenced} == set(runs[1:])
    assert step.wished == [runs[0]]
    assert await cancel_some(stage.database, accepted.batch.id) is None
    assert await stage.counts(accepted) == {"running": 1, "cancelled": 4}
    assert await stage.status(accepted) == "cancelling"

    assert await give_back(stage.database, claimed, {}, AttemptReason.WORKER_STOPPING) is None
    await stage.end(claimed, RunStatus.SUCCEEDED)
    assert await stage.counts(accepted) == {"succeeded": 1, "cancelled": 4}
    assert await stage.status(accepted) == "cancelled"
    await begin_to_cancel(stage.database, accepted.batch.id)
    assert await stage.status(accepted) == "cancelled"


async def test_what_failed_is_retried_as_a_batch_of_its_own(stage: Stage) -> None:
    accepted = await stage.submit(4, max_running=4, metadata={"name": "old"}, deadline_seconds=77)
    runs = await stage.runs(accepted)
    for run, status in zip(runs[:3], (RunStatus.FAILED, RunStatus.SUCCEEDED, RunStatus.CANCELLED), strict=True):
        await stage.end(await stage.claimed(run), status)
    with pytest.raises(BatchUnfinished):
        await retry(stage.database, accepted.batch.id, RUN_SECONDS, ADMISSION)
    await stage.end(await stage.claimed(runs[3]), RunStatus.FAILED)

    again = await retry(stage.database, accepted.batch.id, RUN_SECONDS, ADMISSION)

    assert again.batch.retry_of == accepted.batch.id
    assert again.batch.metadata == {"name": "old"}
    assert again.batch.deadline_at - again.batch.created_at == accepted.batch.deadline_at - accepted.batch.created_at
    assert await stage.counts(again) == {"queued": 2}
    rows = await stage.execute(
        "SELECT custom_id, query, retry_of, lane, id FROM runs WHERE batch_id = :id ORDER BY id", id=again.batch.id
    )
    assert [(row.custom_id, row.query, row.retry_of, row.lane) for row in rows] == [
        ("row-0", "query 0", runs[0], "batch"),
        ("row-3", "query 3", runs[3], "batch"),
    ]
    assert [ring.run_id for ring in again.rings()] == [row.id for row in rows]
    for run in await stage.runs(again):
        await stage.end(await stage.claimed(run))
    with pytest.raises(NothingFailed):
        await retry(stage.database, again.batch.id, RUN_SECONDS, ADMISSION)


async def test_nothing_is_stored_of_a_batch_that_breaks_off(stage: Stage) -> None:
    asked = Submission(
        tenant="acme", user_id=stage.owner.user_id, agent_type="echo", deadline_seconds=60, run_seconds=60
    )
    with Spool() as items:
        items.add("row-0", "fine", {})
        items.add("row-1", "no column holds a \0", {})
        with pytest.raises(Exception, match="a value was refused"):
            await accept(stage.database, asked, items, ADMISSION)

    assert await stage.execute("SELECT id FROM batches UNION ALL SELECT id FROM runs") == []


@pytest.mark.parametrize("bytes_each", [10, 3_000])
async def test_a_manifest_gives_back_what_it_was_given(bytes_each: int) -> None:
    count = 500
    with Spool() as items:
        for number in range(count):
            items.add(f"row-{number}", "x\n" * bytes_each, {})
            await items.spool()
        assert len(items) == count
        for _ in range(2):
            lines = [line async for block in items.blocks() for line in block]
            assert lines == [b"row-%d\t%b\t{}\n" % (number, rb"x\n" * bytes_each) for number in range(count)]
