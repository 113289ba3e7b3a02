"""What PostgreSQL, Redis and the model saw, past every link: the record that clients' stories are held against."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import Any, cast
from uuid import UUID

import httpx
import psutil
import psycopg
from psycopg import AsyncConnection, sql
from redis.asyncio import Redis
from redis.exceptions import RedisError

from agent_relay.shared.database.hang_detector import SIGN_SECONDS
from agent_relay.shared.event_log import EventLog, parse_announcement
from agent_relay.shared.redis_names import DEFAULT, PREFIX
from tests.faults.errands import Line
from tests.faults.history import Announced, Change, Heard, Measure, Slow
from tests.faults.house import House

AGAIN_SECONDS = 0.02
FEEL_SECONDS = 0.25
SLOW_SECONDS = SIGN_SECONDS / 2
"""A service that waits for a sign of life for twice as long, at about the same time, may take it for one that hangs."""
KEYS_OF_A_JOB = 2
"""Which whoever dies with a run leaves to expire by themselves."""
MOST_BYTES = 300 << 20
GROWTH_BYTES = 50 << 20
"""What a process may grow by once it is so old; allocators do not give everything back."""
GROWN_UP_SECONDS = 30

_RECORD = """
    CREATE TABLE changes (
        number bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
        name text NOT NULL, before jsonb, after jsonb);
    CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO changes (name, before, after) VALUES (TG_TABLE_NAME, to_jsonb(OLD), to_jsonb(NEW));
        RETURN NULL;
    END $$;
"""

_RECORDED = ("runs", "messages", "run_steps", "run_requests", "run_messages", "schedules")
_RECORD_TABLE = "CREATE TRIGGER record AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW EXECUTE FUNCTION record()"

_UNSETTLED = """
    SELECT (SELECT count(*) FROM runs WHERE finished_at IS NULL OR NOT end_told)
        + (SELECT count(*) FROM schedules WHERE due_at <= now() + interval '1 minute')
"""

_OPEN_TRANSACTIONS = """
    SELECT query FROM pg_stat_activity WHERE state LIKE 'idle in%%' AND state_change < now() - interval '1 second'
"""


_TICK = """
    UPDATE schedules SET next_times = ARRAY[now()] || next_times[2:], due_at = now()
    WHERE id = (SELECT id FROM schedules WHERE next_times[1] > now() + interval '1 day' ORDER BY random() LIMIT 1)
"""
"""One that is tried again later keeps its tick."""


def record_changes(database_url: str) -> None:
    """Have PostgreSQL itself write down each change of a run and of what belongs to it."""
    with psycopg.connect(database_url) as connection:
        connection.execute(_RECORD)
        for table in _RECORDED:
            connection.execute(sql.SQL(_RECORD_TABLE).format(sql.Identifier(table)))


async def feel_the_pulse(house: House) -> None:
    """Write down when PostgreSQL, past every link, takes long to answer on a new connection; for ever."""
    while True:
        at = time.time()
        with suppress(psycopg.Error):  # It is away, or says no: that is staged.
            await asyncio.to_thread(_ask_for_a_sign, house.database_url)
        if time.time() - at > SLOW_SECONDS:
            house.history.slow.append(Slow(at, time.time()))
        await asyncio.sleep(FEEL_SECONDS)


async def let_time_pass(house: House, seed: int, ticks_a_second: float) -> None:
    """Have ticks of schedules come, at times that follow from the seed; for ever."""
    chance = random.Random(f"ticks {seed}")
    while True:
        await asyncio.sleep(chance.expovariate(ticks_a_second))
        with suppress(psycopg.Error):  # It is away, or says no: that is staged.
            await asyncio.to_thread(_tick, house.database_url)


def _tick(database_url: str) -> None:
    """Have the next tick of some schedule come, unless it has come already."""
    with psycopg.connect(database_url) as connection:
        connection.execute(_TICK)


def _ask_for_a_sign(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("SELECT 1")


def unsettled_runs(database_url: str) -> int:
    """Count the runs that have not ended, or whose end has not been told, and the ticks that have come."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(_UNSETTLED).fetchone()
    return int(row[0]) if row else 0


async def listen(house: House) -> None:
    """Write down everything that Redis announces about runs; for ever."""
    while True:
        try:
            async with (
                Redis.from_url(house.redis.url()) as redis,
                redis.pubsub(ignore_subscribe_messages=True) as all_logs,
            ):
                await all_logs.psubscribe(f"{PREFIX}log:*")
                async for said in all_logs.listen():  # pyright: ignore[reportUnknownVariableType]
                    message = cast("dict[str, bytes]", said)
                    entries = parse_announcement(message["data"])
                    run_id = message["channel"].decode().removeprefix(f"{PREFIX}log:")
                    house.history.announced.append(Announced(time.time(), run_id, entries))
        except (RedisError, OSError):
            await asyncio.sleep(AGAIN_SECONDS)


async def testify(house: House) -> None:
    """Add to the history what PostgreSQL, Redis and the model know in the end."""
    history = house.history
    async with await AsyncConnection.connect(house.database_url) as connection:
        changes = await connection.execute(
            "SELECT extract(epoch FROM at), name, before, after FROM changes ORDER BY number"
        )
        history.changes = [Change(float(at), name, before, after) async for at, name, before, after in changes]
        workers = await connection.execute("SELECT id::text, pid FROM workers")
        history.workers = {worker_id: pid async for worker_id, pid in workers}
    async with Redis.from_url(house.redis.url()) as redis:
        log = EventLog(redis)
        for run_id in history.rows:
            if entries := await log.read(UUID(run_id)):
                history.logs[run_id] = entries
    async with httpx.AsyncClient() as client:
        for heard in (await client.get(f"{house.model_url}/heard")).json():
            run_id, _, attempt = heard["who"].partition("/")
            history.heard.append(Heard(heard["at"], run_id, int(attempt), heard["earlier"]))
    history.ledger = [Line.parse(line) for line in house.ledger.read_text().splitlines()]


def _resident(process: psutil.Process) -> int:
    """Read what a process holds; one that was forked comes to hold what it shares with its maker as it touches it."""
    maker = process.parent()
    forked = maker is not None and maker.cmdline() == process.cmdline()
    return max(each.memory_info().rss for each in ([process, maker] if forked and maker else [process]))


class Scales:
    """Measure what must come back to where it was: memory, connections, keys, readers."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._first: dict[int, float] = {}

    def weigh(self) -> None:
        """Note what each process that was not seen before takes; asked now and then."""
        for post in self._house.posts:
            for process in [*post.workers(), *post.family()[:1]]:
                with suppress(psutil.Error):
                    if time.time() - process.create_time() > GROWN_UP_SECONDS:
                        self._first.setdefault(process.pid, _resident(process))

    async def compare(self, pool_size: int) -> None:
        """Add to the history what everything takes now that all is quiet."""
        measures = self._house.history.measures
        processes = 0
        for post in self._house.posts:
            family = {process.pid: process for process in [*post.workers(), *post.family()[:1]]}
            processes += len(family)
            for pid, process in family.items():
                before, after = self._first.get(pid, 0), process.memory_info().rss
                allowed = before + GROWTH_BYTES if before else MOST_BYTES
                measures.append(Measure(f"bytes of memory of {post.name} ({pid})", before, after, allowed))
        async with await AsyncConnection.connect(self._house.database_url) as connection:
            count = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'agent-relay%%'"
            connected = await (await connection.execute(count)).fetchone()
            measures.append(Measure("connections to PostgreSQL", 0, _number(connected), processes * (pool_size + 1)))
            crashes = await (await connection.execute("SELECT coalesce(sum(crashes), 0) FROM runs")).fetchone()
            idle = [str(query) async for (query,) in await connection.execute(_OPEN_TRANSACTIONS)]
            measures.append(Measure(f"open transactions {idle[:3]}", 0, len(idle), 0))
        async with Redis.from_url(self._house.redis.url()) as redis:
            clients: list[Any] = await redis.client_list()
            measures.append(Measure("connections to Redis", 0, len(clients) - 1, processes * 20))
            keys = cast("list[bytes]", await redis.keys("*"))
            forever = [key for key in keys if await redis.ttl(key) == -1]
            measures.append(Measure(f"keys that stay for ever {forever[:3]}", 0, len(forever), 0))
            jobs = [key for key in keys if key.startswith(DEFAULT.jobs.encode())]
            lost = KEYS_OF_A_JOB * _number(crashes) + len(self._house.history.broken)
            measures.append(Measure(f"jobs left behind {jobs[:3]}", 0, len(jobs), lost))
        async with httpx.AsyncClient() as client:
            for url in self._house.api_urls:
                metrics = (await client.get(f"{url}/metrics")).text
                followed = next(line for line in metrics.splitlines() if line.startswith("agent_relay_followed_runs"))
                measures.append(Measure(f"runs followed at {url}", 0, float(followed.split()[1]), 0))


def _number(row: Any) -> float:
    return float(row[0])
