"""A sweeper finds what was lost however much waits, and looks at no more at once than a moment allows."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agent_relay.shared.clock import new_id
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.maintenance.sweeper import Sweeper
from agent_relay.shared.metrics import REGISTRY
from agent_relay.shared.queue import Lane, QueueEntry, RunQueue
from agent_relay.shared.redis_names import DEFAULT
from agent_relay.shared.runs.recovery import BATCH
from agent_relay.shared.settings import Settings

LANE = DEFAULT.lane("default", Lane.BATCH)


@dataclass
class Stage:
    """A database and a Redis with a sweeper between them."""

    database: AsyncEngine
    redis: Redis
    lanes: RunQueue
    sweeper: Sweeper

    async def execute(self, statement: str, **values: Any) -> Any:
        """Run a statement; returns its rows, if it has any."""
        async with self.database.begin() as connection:
            result = await connection.execute(text(statement), values)
            return result.all() if result.returns_rows else None

    async def waiting(self, count: int) -> list[QueueEntry]:
        """Store runs that were accepted together a while ago; returns the calls for them."""
        rows = await self.execute(
            "INSERT INTO runs (id, tenant, user_id, agent_type, pool, text_output, lane, query, metadata,"
            " user_message_id, message_id, deadline_at, rung_at)"
            " SELECT gen_random_uuid(), 'acme', :user_id, 'echo', 'default', true, 'batch', '?', '{}',"
            " gen_random_uuid(), gen_random_uuid(), now() + interval '1 hour', now() - interval '2 seconds'"
            " FROM generate_series(1, :count) RETURNING id",
            user_id=new_id(),
            count=count,
        )
        return [QueueEntry(row.id, 1, "default", Lane.BATCH, "acme") for row in rows]

    async def rings(self) -> list[int]:
        """Tell how often each run was rung, sorted."""
        return [row.ring for row in await self.execute("SELECT ring FROM runs ORDER BY ring")]


@pytest.fixture
async def stage(database_url: str, redis_url: str) -> AsyncGenerator[Stage]:
    """A stage of the test's own."""
    database = create_async_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    settings = Settings(database_url=database_url, redis_url=redis_url)
    async with Redis.from_url(redis_url) as redis:
        lanes = RunQueue(redis)
        stage = Stage(database, redis, lanes, Sweeper(settings, database, lanes, EventLog(redis)))
        await stage.execute(
            "INSERT INTO agents (agent_type, pool, description, output_schema, text_output)"
            " VALUES ('echo', 'default', '', '{}', true)"
        )
        yield stage
    await database.dispose()


async def test_many_runs_that_were_never_rung_are_rung_once_each(stage: Stage) -> None:
    count = 2 * BATCH + 500
    await stage.waiting(count)
    for _ in range(4):
        await stage.sweeper.sweep()

    assert await stage.redis.zcard(LANE) == count
    assert await stage.rings() == [2] * count


async def test_a_lost_ring_is_found_behind_however_many_that_wait(stage: Stage) -> None:
    calls = await stage.waiting(2 * BATCH + 500)
    ids = sorted(call.run_id for call in calls)
    await stage.lanes.ring(calls)
    await stage.redis.zrem(LANE, f"{ids[-1]}:1", f"{ids[0]}:1")
    for _ in range(5):
        await stage.sweeper.sweep()

    assert await stage.rings() == [1] * (len(calls) - 2) + [2] * 2
    assert await stage.redis.zscore(LANE, f"{ids[-1]}:2") is not None


async def test_a_run_that_was_taken_in_between_is_not_rung_again(stage: Stage) -> None:
    await stage.waiting(1)
    await stage.sweeper.sweep()
    await stage.execute("UPDATE runs SET status = 'running'")
    await stage.sweeper.sweep()
    await stage.sweeper.sweep()

    assert await stage.rings() == [1]


async def test_an_end_that_nobody_has_told_is_told(stage: Stage) -> None:
    (late,), (fresh,) = await stage.waiting(1), await stage.waiting(1)
    ended = "UPDATE runs SET status = 'failed', error = '{}', finished_at = now() - make_interval(secs => :ago)"
    for call, ago in ((late, 60), (fresh, 0)):
        await stage.execute(f"{ended} WHERE id = :id", id=call.run_id, ago=ago)

    await stage.sweeper.sweep()

    assert await stage.redis.keys("*log:*") == [DEFAULT.log(late.run_id).encode()]
    assert [row.id for row in await stage.execute("SELECT id FROM runs WHERE end_told")] == [late.run_id]


async def test_a_batch_is_erased_as_a_whole_a_while_after_its_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_relay.shared.maintenance.sweeper.ERASE_SECONDS", 0)
    batches = {name: new_id() for name in ("old", "young", "unfinished")}
    for name, batch_id in batches.items():
        await stage.execute(
            "INSERT INTO batches (id, tenant, user_id, agent_type, metadata, run_seconds, total, deadline_at)"
            " VALUES (:id, 'acme', :id, 'echo', '{}', 60, 2, now())",
            id=batch_id,
        )
        await stage.waiting(2)
        await stage.execute("UPDATE runs SET batch_id = :id, custom_id = id WHERE batch_id IS NULL", id=batch_id)
        await stage.execute(
            "UPDATE runs SET status = 'succeeded', end_told = true, finished_at = now() - interval '31 days'"
            " WHERE batch_id = :id AND (:all OR id = (SELECT id FROM runs WHERE batch_id = :id LIMIT 1))",
            id=batch_id,
            all=name != "unfinished",
        )
    await stage.execute("UPDATE batches SET finished_at = now() - interval '31 days' WHERE id = :id", id=batches["old"])
    await stage.sweeper.sweep()
    unread = await stage.execute("SELECT id FROM batches WHERE deleted_at IS NOT NULL")
    kept = await stage.execute("SELECT count(*) AS runs FROM runs")
    await stage.execute("UPDATE batches SET deleted_at = deleted_at - interval '1 hour'")
    await stage.sweeper.sweep()

    assert [row.id for row in unread] == [batches["old"]]
    assert kept[0].runs == 6
    left = await stage.execute("SELECT batch_id, count(*) AS runs FROM runs GROUP BY batch_id")
    assert {row.batch_id: row.runs for row in left} == {batches["young"]: 2, batches["unfinished"]: 2}
    assert {row.id for row in await stage.execute("SELECT id FROM batches")} == {*left_ids(batches)}
    assert {row.batch_id for row in await stage.execute("SELECT batch_id FROM batch_results")} == {*left_ids(batches)}


def left_ids(batches: dict[str, Any]) -> list[Any]:
    """Name the batches that are to stay."""
    return [batches["young"], batches["unfinished"]]


async def thread_of(stage: Stage, status: str, *, ended_days_ago: float = 0, deleted_ago: str | None = None) -> UUID:
    """Store a thread with one run and its query; returns the run's id."""
    (call,) = await stage.waiting(1)
    thread_id = new_id()
    await stage.execute(
        "INSERT INTO threads (id, tenant, user_id, agent_type, metadata, deleted_at)"
        " VALUES (:id, 'acme', :id, 'echo', '{}', now() - CAST(:ago AS interval))",
        id=thread_id,
        ago=deleted_ago,
    )
    await stage.execute(
        "UPDATE runs SET thread_id = :thread_id, seq = 1, lane = 'interactive' WHERE id = :id",
        thread_id=thread_id,
        id=call.run_id,
    )
    await stage.execute(
        "INSERT INTO messages (id, thread_id, run_id, role, content, metadata, position)"
        " SELECT user_message_id, thread_id, id, 'user', query, '{}', 1 FROM runs WHERE id = :id",
        id=call.run_id,
    )
    await became(stage, call.run_id, status, ended_days_ago)
    return call.run_id


async def became(stage: Stage, run_id: UUID, status: str, ended_days_ago: float) -> None:
    """Have a run be as it is after a while."""
    await stage.execute(
        "UPDATE runs SET status = CAST(:status AS text), end_told = true, finished_at = CASE WHEN CAST(:status AS text)"
        " IN ('queued', 'running') THEN NULL ELSE now() - make_interval(days => :days) END WHERE id = :id",
        status=status,
        days=ended_days_ago,
        id=run_id,
    )


async def test_a_deleted_thread_is_erased_with_all_it_holds_and_others_are_kept_however_old(stage: Stage) -> None:
    gone = await thread_of(stage, "succeeded", deleted_ago="2 minutes")
    kept = {
        "old": await thread_of(stage, "succeeded", ended_days_ago=1000),
        "deleted just now, and somebody may read it": await thread_of(stage, "succeeded", deleted_ago="10 seconds"),
        "deleted, and its run is not cancelled yet": await thread_of(stage, "running", deleted_ago="2 minutes"),
    }

    await stage.sweeper.erase()

    assert {row.id for row in await stage.execute("SELECT id FROM runs")} == set(kept.values())
    assert {row.run_id for row in await stage.execute("SELECT run_id FROM messages")} == set(kept.values())
    assert gone not in kept.values()
    assert len(await stage.execute("SELECT id FROM threads")) == len(kept)


async def test_a_run_without_a_thread_is_erased_so_long_after_its_end(stage: Stage) -> None:
    for status, days in (("succeeded", 31), ("failed", 31), ("cancelled", 31)):
        (call,) = await stage.waiting(1)
        await became(stage, call.run_id, status, days)
    kept = await stage.waiting(2)
    await became(stage, kept[0].run_id, "succeeded", 29)
    await stage.execute("UPDATE runs SET created_at = now() - interval '1000 days'")

    await stage.sweeper.erase()

    assert {row.id for row in await stage.execute("SELECT id FROM runs")} == {call.run_id for call in kept}


async def stored(stage: Stage, count: int, **columns: str) -> list[UUID]:
    """Store runs that were accepted one after the other, with these columns besides; returns their ids."""
    names, values = (", ".join(part) for part in (columns.keys(), columns.values()))
    rows = await stage.execute(
        "INSERT INTO runs (id, tenant, user_id, agent_type, pool, text_output, query, metadata, user_message_id,"
        f" message_id, deadline_at, rung_at, {names})"
        " SELECT gen_random_uuid(), 'acme', gen_random_uuid(), 'echo', 'default', true, '?', '{}', gen_random_uuid(),"
        f" gen_random_uuid(), now() + interval '1 hour', now(), {values}"
        " FROM generate_series(1, :count) RETURNING id",
        count=count,
    )
    return sorted(row.id for row in rows)


async def statuses(stage: Stage, run_ids: list[UUID]) -> list[str]:
    """Read in which status each of these runs is."""
    rows = await stage.execute("SELECT id, status FROM runs ORDER BY id")
    by_id = {row.id: row.status for row in rows}
    return [by_id[run_id] for run_id in run_ids]


async def refuses(stage: Stage, event: str, run_id: UUID) -> None:
    """Have the database refuse that one run be changed so."""
    await stage.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$",
    )
    await stage.execute(
        f"CREATE TRIGGER refuses BEFORE {event} ON runs FOR EACH ROW WHEN (OLD.id = '{run_id}')"
        " EXECUTE FUNCTION refuse()"
    )


async def dead_worker(stage: Stage) -> str:
    """Register a worker that has died; returns its id as SQL writes it."""
    (worker,) = await stage.execute(
        "INSERT INTO workers (id, pool, host, pid, version, slots, lease_until, ended_at)"
        " VALUES (gen_random_uuid(), 'default', 'here', 1, '0', 1, now(), now()) RETURNING id"
    )
    return f"'{worker.id}'"


async def test_one_run_that_cannot_be_taken_back_keeps_no_other_from_it(stage: Stage) -> None:
    run_ids = await stored(stage, 5, status="'running'", worker_id=await dead_worker(stage))
    await refuses(stage, "UPDATE", run_ids[0])

    await stage.sweeper.sweep()
    assert await statuses(stage, run_ids) == ["running", *["queued"] * 4]

    later = await stored(stage, 1, status="'running'", worker_id=await dead_worker(stage))
    before = REGISTRY.get_sample_value("agent_relay_bad_input_total", {"kind": "row"})
    await stage.sweeper.sweep()
    assert await statuses(stage, later) == ["queued"]
    assert REGISTRY.get_sample_value("agent_relay_bad_input_total", {"kind": "row"}) == before  # It was left out.


async def test_a_message_that_is_there_already_keeps_no_other_run_from_its_end(stage: Stage) -> None:
    (thread,) = await stage.execute(
        "INSERT INTO threads (id, tenant, user_id, agent_type, metadata)"
        " VALUES (gen_random_uuid(), 'acme', gen_random_uuid(), 'echo', '{}') RETURNING id"
    )
    overdue = {"deadline_at": "now() - interval '1 minute'", "cancel_requested_at": "now()", "partial_output": "'x'"}
    columns = {"status": "'queued'", "seq": "1", "thread_id": f"'{thread.id}'", **overdue}
    deadline = columns.pop("deadline_at")
    (bad,) = await stored(stage, 1, **columns)
    others = await stored(stage, 3, status="'queued'")
    await stage.execute(f"UPDATE runs SET deadline_at = {deadline}")
    await stage.execute(
        "INSERT INTO messages (id, thread_id, run_id, position, role, content, metadata)"
        " SELECT message_id, thread_id, id, 3, 'assistant', '!', '{}' FROM runs WHERE id = :id",
        id=bad,
    )

    await stage.sweeper.sweep()

    assert await statuses(stage, [bad, *others]) == ["queued", *["failed"] * 3]


async def test_a_step_that_fails_keeps_no_other_step_from_being_made(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("agent_relay.shared.bad_input._said", {})
    monkeypatch.setattr(stage.sweeper, "take_back", fails)
    (run_id,) = await stored(
        stage, 1, status="'failed'", finished_at="now() - interval '10 s'", error='\'{"code": "agent_error"}\''
    )
    await stored(stage, 1, status="'running'", worker_id=await dead_worker(stage))
    for _ in range(5):
        await stage.sweeper.sweep()

    assert await stage.redis.exists(DEFAULT.log(run_id))
    assert (await stage.execute("SELECT end_told FROM runs WHERE id = :id", id=run_id))[0].end_told
    assert sum("sweeper.failed step=take_back" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("usage", "'[]'"),
        ("usage", f"'{'[' * 3000}{']' * 3000}'"),
        ("error", "'\"text\"'"),
        ("error", "to_jsonb(1e5000)"),
        ("status", "'waiting'"),
    ],
    ids=["usage that is a list", "JSON too deep", "an error that is text", "a number too long", "an unknown status"],
)
async def test_a_row_with_odd_values_keeps_no_other_end_from_being_told(stage: Stage, column: str, value: str) -> None:
    ended = {"status": "'failed'", "finished_at": "now() - interval '10 s'", "error": '\'{"code": "agent_error"}\''}
    await stored(stage, 1, **ended | {column: value})
    (good,) = await stored(stage, 1, **ended)
    await stage.sweeper.sweep()

    assert await stage.redis.exists(DEFAULT.log(good))
    assert all(row.end_told for row in await stage.execute("SELECT end_told FROM runs"))


async def test_a_row_that_cannot_be_erased_keeps_no_other_from_it(stage: Stage) -> None:
    old = {"status": "'cancelled'", "finished_at": "now() - interval '1 year'", "end_told": "true"}
    kept, *others = await stored(stage, 5, **old)
    await stage.execute("CREATE TABLE of_a_newer_version (run_id uuid REFERENCES runs (id))")
    await stage.execute("INSERT INTO of_a_newer_version VALUES (:id)", id=kept)
    await stage.execute(
        "INSERT INTO workers (id, pool, host, pid, version, slots, lease_until, ended_at)"
        " VALUES (gen_random_uuid(), 'default', 'here', 1, '0', 1, now(), now() - interval '1 week')"
    )

    await stage.sweeper.erase()

    assert others
    assert [row.id for row in await stage.execute("SELECT id FROM runs")] == [kept]
    assert not await stage.execute("SELECT id FROM workers")  # It comes after what could not be erased.
