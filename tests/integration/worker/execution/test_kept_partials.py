"""What a heartbeat stores of large partial outputs, and that neither it nor the publisher is held up by them."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from redis.asyncio import Redis

from agent_relay.shared.event_log import LARGEST_TEXT_BYTES, EventLog, Id
from agent_relay.worker.execution.kept_partials import Held, Kept, PartialsToKeep
from agent_relay.worker.execution.lease import _Connection  # pyright: ignore[reportPrivateUsage]
from agent_relay.worker.execution.publisher import EventWriter, Publisher
from tests.integration.worker.execution.test_lease import lease_of
from tests.support.client import Client
from tests.support.eventually import soon
from tests.support.service import Service
from tests.support.stage import Stage

MIB = 1 << 20


def held(text: str | None, requests: int = 1) -> Held:
    return Held(uuid4(), 1, text, 1, {"requests": requests})


def grown(run: Held) -> Held:
    return replace(run, text=f"{run.text}.", last_entry=run.last_entry + 1)


def stored(keeping: PartialsToKeep, runs: list[Held]) -> list[UUID]:
    """Have a heartbeat store what it chooses; returns whose texts."""
    kept = keeping.choose(runs)
    keeping.stored(kept)
    assert sum(len(each.run.text or "") for each in kept if each.with_text) <= LARGEST_TEXT_BYTES
    return [each.run.run_id for each in kept if each.with_text]


def test_large_texts_are_stored_in_turn_and_small_ones_each_time() -> None:
    keeping = PartialsToKeep()
    large = [held("x" * (2 * MIB)) for _ in range(45)]
    small = [held("y" * 100) for _ in range(5)]
    seen: list[UUID] = []
    for _ in range(46):
        chosen = stored(keeping, [*large, *small])
        assert {run.run_id for run in small} <= set(chosen)
        seen += [run.run_id for run in large if run.run_id in chosen]
        large, small = [grown(run) for run in large], [grown(run) for run in small]
    assert len(set(seen[:45])) == 45, "each in its turn"


def test_what_did_not_change_is_not_stored_again() -> None:
    keeping = PartialsToKeep()
    runs = [held("x" * (3 * MIB)), held("x" * (3 * MIB)), held(None), held("y")]
    assert [len(stored(keeping, runs)) for _ in range(3)] == [3, 1, 0]
    assert keeping.choose(runs) == []


def test_a_text_above_the_budget_goes_alone_and_less_often_and_a_huge_one_never() -> None:
    keeping = PartialsToKeep()
    above, huge, small = held("x" * (10 * MIB)), held("x" * (100 * MIB)), held("y")
    alone = 0
    for _ in range(12):
        chosen = stored(keeping, [above, huge, small])
        assert huge.run_id not in chosen
        alone += chosen == [above.run_id]
        assert chosen in ([above.run_id], [small.run_id])
        above, huge, small = grown(above), grown(huge), grown(small)
    assert alone == 3


def test_bytes_count_and_not_characters() -> None:
    keeping = PartialsToKeep()
    assert len(stored(keeping, [held("€" * MIB), held("€" * MIB)])) == 1


def test_the_usage_of_a_text_that_waits_is_stored_and_its_entry_is_not() -> None:
    keeping = PartialsToKeep()
    first, second = held("x" * (3 * MIB)), held("x" * (3 * MIB))
    kept = {each.run.run_id: each for each in keeping.choose([first, second])}
    waits = next(each for each in kept.values() if not each.with_text)
    assert waits == Kept(replace(waits.run, text=None, last_entry=0, usage={"requests": 1}), with_text=False)


def test_another_attempt_is_stored_from_its_beginning() -> None:
    keeping = PartialsToKeep()
    run = held("x")
    assert stored(keeping, [run]) == [run.run_id]
    assert stored(keeping, [replace(run, attempt=2)]) == [run.run_id]


async def test_a_row_keeps_its_text_while_the_next_one_waits(stage: Stage, database_url: str) -> None:
    runs: list[Held] = []
    lease = lease_of(database_url, runs, [])
    await lease.acquire()
    assert lease.worker_id is not None
    for text in ("a" * (3 * MIB), "b" * (3 * MIB)):
        run_id = await stage.query(thread_id=None, agent_type="echo")
        await stage.claimed(run_id, lease.worker_id)
        runs.append(Held(run_id, 1, text, 3, {"requests": 2}))

    async def both() -> bool:
        return all([(await stage.row(run.run_id)).partial_output for run in runs])

    assert await soon(both)
    for run in runs:
        row = await stage.row(run.run_id)
        assert (row.partial_output == run.text, row.last_entry, row.usage) == (True, 3, {"requests": 2})
    runs[:] = [Held(run.run_id, 1, "c" * (100 * MIB), 4, {"requests": 3}) for run in runs]

    async def counted() -> bool:
        return all([(await stage.row(run.run_id)).usage == {"requests": 3} for run in runs])

    assert await soon(counted)
    for run, first in zip(runs, "ab", strict=True):
        row = await stage.row(run.run_id)
        assert (row.partial_output, row.last_entry) == (first * (3 * MIB), 3)
    await lease.release()


async def test_a_heartbeat_that_cannot_keep_partials_renews_the_lease(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement of the heartbeat but the renewal takes as long as it may, and longer."""
    ask = _Connection.ask
    limits: list[float] = []

    def slow(self: Any, statement: Any, values: Any, seconds: float = 2) -> list[Any]:
        if "lease_until" not in statement and "workers" not in statement:
            limits.append(seconds)
            ask(self, "SELECT pg_sleep(60)", {}, seconds)
        return ask(self, statement, values, seconds)

    monkeypatch.setattr(_Connection, "ask", slow)
    lost: list[bool] = []
    lease = lease_of(database_url, [held("x")], [], lease_seconds=3, beat_seconds=1)
    monkeypatch.setattr(lease, "_on_lost", lambda: lost.append(True))
    await lease.acquire()

    async def renewed() -> bool:
        return len(limits) >= 8

    assert await soon(renewed)
    assert set(limits) == {0.5}
    assert not lost
    await lease.release()


class CountedLog(EventLog):
    """A real log that knows what each round trip carried."""

    trips: list[list[int]]

    async def append(self, appends: Any) -> Any:
        """Append."""
        self.trips.append([append.length for append in appends])
        return await super().append(appends)


async def test_a_round_trip_carries_little_and_a_large_text_holds_up_nobody(redis_url: str) -> None:
    redis = Redis.from_url(redis_url)
    log = CountedLog(redis)
    log.trips = []

    async def is_mine(*_: Any) -> bool:
        return True

    publisher = Publisher(log, is_mine)
    tellings = [publisher.begin(uuid4(), 1, 60, lambda: None) for _ in range(25)]
    for telling in tellings[:20]:
        telling.show("x" * (2 * MIB))
    tellings[20].show("x" * (10 * MIB))
    tellings[21].show("x" * (LARGEST_TEXT_BYTES + 1))
    for telling in tellings[22:]:
        telling.show("small")
    publishing = asyncio.create_task(publisher.run())
    async with asyncio.timeout(60):
        for telling in tellings[22:]:
            await telling.flushed()
        first = len(log.trips)
        for telling in tellings:
            await _quiet(telling)
    assert first <= 2, "the small ones do not wait for all the others"
    assert all(len(trip) == 1 or sum(trip) <= 4 * MIB for trip in log.trips)
    assert [await log.read(telling.run_id) == [] for telling in tellings].count(True) == 1
    assert (tellings[21].text, tellings[21].known[1]) == ("x" * (LARGEST_TEXT_BYTES + 1), 1)
    tellings[21].show("y")
    assert tellings[21].known == ("y", 2), "the row shows it"
    (entry,) = await log.read(tellings[20].run_id)
    assert entry.id == Id(1, 1)
    publishing.cancel()
    await redis.aclose()


async def _quiet(telling: EventWriter) -> None:
    while not telling._quiet.is_set():  # noqa: ASYNC110  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(0.01)


SHORT = pytest.param(8, 2 * MIB, 40 * MIB, 8, 6, id="short")
LONG = pytest.param(45, 2 * MIB, 100 * MIB, 20, 3, marks=[pytest.mark.long, pytest.mark.timeout(600)], id="long")


@pytest.mark.parametrize(
    ("runs", "size", "huge", "seconds", "lease"), [pytest.param(8, 2 * MIB, 40 * MIB, 8, 6, id="short"), LONG]
)
async def test_no_lease_lapses_and_no_bystander_begins_again(
    service: Service, runs: int, size: int, huge: int, seconds: int, lease: int
) -> None:
    names = ["grows", "says"]
    worker = service.worker(
        AGENTS=",".join(f"{name}=tests.support.large_agents:{name}" for name in names),
        LEASE_SECONDS=str(lease),
        BEAT_SECONDS=str(lease / 3),
        STUCK_LOOP_SECONDS="120",
        DRAIN_SECONDS="0",
        MAX_OUTPUT_BYTES=str(200 * MIB),
    )
    api = service.api(LEASE_SECONDS=str(lease), BEAT_SECONDS=str(lease / 3))
    async with Client(api.url) as client:
        large = [(await client.run(f"{size} {seconds}", agent_type="grows"))["id"] for _ in range(runs)]
        giant = (await client.run(f"{huge} {seconds}", agent_type="grows"))["id"]
        bystanders = [(await client.run(f"20 {seconds}", agent_type="grows"))["id"] for _ in range(3)]
        for run_id in bystanders:
            run = await client.ended(run_id)
            assert (run["status"], run["attempt"]) == ("succeeded", 1)
            assert run["output"].startswith("x" * 20 + ".")
        with psycopg.connect(service.database_url) as connection:
            attempts = connection.execute("SELECT id, attempt, crashes FROM runs").fetchall()
            (workers,) = connection.execute("SELECT count(*) FROM workers").fetchone() or (0,)
        assert {(attempt, crashes) for _, attempt, crashes in attempts} == {(1, 0)}
        assert workers == 1
        for run_id in [*large, giant]:
            await client.http.post(f"/runs/{run_id}/cancel")
    log = worker.log.read_text()
    assert not re.findall(r"lease\.(?:lapsed|declared_dead).*", log)
    assert worker.process.poll() is None
