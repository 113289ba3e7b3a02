"""Runs accepted a second by one API process, against the same row inserted by bare psycopg and one `ZADD`.

Both sides are one process with as many connections to PostgreSQL, all of them busy. No worker is alive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from subprocess import Popen

import psycopg
import uvloop

from benchmarks.client import message, post_run
from benchmarks.processes import cpu_seconds, heard, module, tell
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import Stage, port, stage
from tests.support.service import Running

RUNS = 2000
CONNECTIONS = 10
QUERY = {"query": "What is my balance, and why has it changed since Monday?", "agent_type": "words"}


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast runs were stored, and at what cost."""

    runs_a_second: float
    own_ms: float
    """CPU a run of the process that stores them."""
    servers_ms: float
    """CPU a run of PostgreSQL and Redis."""


async def call(port: int, request: bytes, waiting: Iterator[int]) -> None:
    """Post runs over one connection, as long as more are wanted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in waiting:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 202 " in head[:16], head
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
    writer.close()


async def ours(api: Running) -> float:
    """Post runs; returns how long it took."""
    request = message("POST", "/api/v1/runs", QUERY).replace(b"Connection: close", b"Connection: keep-alive")
    began, waiting = time.perf_counter(), iter(range(RUNS))
    await asyncio.gather(*(call(port(api), request, waiting) for _ in range(CONNECTIONS)))
    return time.perf_counter() - began


async def bare(process: Popen[str]) -> float:
    """Have rows inserted; returns how long it took."""
    tell(process, "go")
    return float(await asyncio.to_thread(heard, process))


async def measure(on: Stage, pid: int, store: Callable[[], Awaitable[float]]) -> Pace:
    """Measure one side, beginning with empty tables."""
    with psycopg.connect(on.postgres.url(), autocommit=True) as connection:
        connection.execute("TRUNCATE runs CASCADE")
    await on.redis.flushdb()
    own, servers = cpu_seconds([pid]), on.cpu_seconds()
    seconds = await store()
    own, servers = cpu_seconds([pid]) - own, on.cpu_seconds() - servers
    with psycopg.connect(on.postgres.url()) as connection:
        stored = connection.execute("SELECT count(*) FROM runs WHERE status = 'queued'").fetchone()
    assert stored == (RUNS,), stored
    return Pace(RUNS / seconds, 1000 * own / RUNS, 1000 * servers / RUNS)


async def main(rounds: int) -> None:
    """Compare."""
    with stage() as on:
        on.register_agents()
        api = on.service.api(DATABASE_POOL_SIZE=str(CONNECTIONS))
        like = await post_run(port(api), QUERY["query"], QUERY["agent_type"])
        urls = {"DATABASE_URL": on.postgres.url(), "REDIS_URL": on.redis_url}
        with module("bare_submissions", str(RUNS), str(CONNECTIONS), like, **urls) as process:
            heard(process)
            sides: dict[str, Callable[[], Awaitable[Pace]]] = {
                "a row and a ZADD, bare": partial(measure, on, process.pid, partial(bare, process)),
                "POST /runs": partial(measure, on, api.process.pid, partial(ours, api)),
            }
            figures = await interleaved(rounds, sides)
    least = figures["a row and a ZADD, bare"]
    table(
        f"Submissions, {RUNS:,} over {CONNECTIONS} connections, {rounds} rounds; CPU a run",
        ["", "a second", "ratio to bare", "its own CPU, ms", "servers' CPU, ms"],
        [
            [
                side,
                Spread.of(pace.runs_a_second for pace in paces),
                Spread.of_ratio([pace.runs_a_second for pace in paces], [pace.runs_a_second for pace in least]),
                Spread.of(pace.own_ms for pace in paces),
                Spread.of(pace.servers_ms for pace in paces),
            ]
            for side, paces in figures.items()
        ],
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
