"""The cost of stored steps for PostgreSQL: a run of ten tool calls, with and without them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import LiteralString

import psycopg
import uvloop

from benchmarks.client import request
from benchmarks.processes import cpu_seconds
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import Stage, port, stage
from tests.support.service import Running

CALLS = 10
RUNS = 40
KEPT, NOT_KEPT = "steps", "forgetful"

_SEEN: LiteralString = """
    SELECT pg_current_wal_lsn() - '0/0', xact_commit FROM pg_stat_database WHERE datname = current_database()
"""
_STORED: LiteralString = "SELECT count(*), sum(octet_length(messages)) FROM run_steps"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run."""

    wal_bytes: float
    transactions: float
    postgres_ms: float
    """CPU of all processes of PostgreSQL."""
    worker_ms: float
    seconds: float


async def cost(on: Stage, api: Running, worker: Running, agent_type: str) -> Cost:
    """Have runs answered, all at once; what the last ones left to be written counts for them."""
    pids = [on.postgres.process.pid], [worker.process.pid]
    began, cpu, (wal, transactions) = time.perf_counter(), [cpu_seconds(each) for each in pids], _seen(on)
    query = {"query": f"{CALLS} of 0", "agent_type": agent_type}
    responses = await asyncio.gather(*(request(port(api), "POST", "/api/v1/agent/query", query) for _ in range(RUNS)))
    for response in responses:
        [answer] = [event async for event in response.events()]
        response.close()
        assert answer["response"] == "done", answer
    seconds = time.perf_counter() - began
    (wal_after, transactions_after), cpu_after = _seen(on), [cpu_seconds(each) for each in pids]
    of_postgres, of_worker = [(after - before) * 1000 / RUNS for before, after in zip(cpu, cpu_after, strict=True)]
    return Cost((wal_after - wal) / RUNS, (transactions_after - transactions) / RUNS, of_postgres, of_worker, seconds)


def _seen(on: Stage) -> tuple[float, float]:
    with psycopg.connect(on.postgres.url()) as connection:
        time.sleep(1.1)  # Statistics are published once a second.
        row = connection.execute(_SEEN).fetchone()
    assert row
    return float(row[0]), float(row[1])


async def main(rounds: int) -> None:
    """Compare."""
    with stage() as on:
        api, worker = on.service.api(), on.service.worker(WORKER_SLOTS=str(RUNS))
        sides = {name: partial(cost, on, api, worker, name) for name in (KEPT, NOT_KEPT)}
        figures = await interleaved(rounds, sides)
        with psycopg.connect(on.postgres.url()) as connection:
            stored = connection.execute(_STORED).fetchone()
    assert stored
    names = ("wal_bytes", "transactions", "postgres_ms", "worker_ms", "seconds")
    kept, not_kept = figures[KEPT], figures[NOT_KEPT]
    table(
        f"A run of {CALLS} calls, {rounds} rounds of {RUNS} at once",
        ["", "bytes of WAL", "transactions", "PostgreSQL, ms of CPU", "worker, ms of CPU", f"{RUNS} runs, s"],
        [
            *(
                [name, *(Spread.of(getattr(each, figure) for each in costs) for figure in names)]
                for name, costs in (("steps stored", kept), ("not stored", not_kept))
            ),
            [
                "added a call",
                *(
                    Spread.of(
                        (getattr(one, figure) - getattr(other, figure)) / CALLS
                        for one, other in zip(kept, not_kept, strict=True)
                    )
                    for figure in names[:-1]
                ),
                "",
            ],
        ],
    )
    print(f"{stored[0] / ((rounds + 1) * RUNS):.3g} rows a run, of {stored[1] / stored[0]:.0f} bytes of messages each")


if __name__ == "__main__":
    uvloop.run(main(asked()))
