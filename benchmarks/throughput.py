"""Runs a second with a no-op in the agent's place, against two bare transactions a run, and against stock arq's no-ops.

All the runs wait beforehand; the time is that from the first claim to the last end, by the database's clock. A round of
each side begins on empty servers, with processes of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import psycopg
import uvloop

from agent_relay.shared.clock import new_id
from agent_relay.shared.queue import Lane, QueueEntry, RunQueue
from agent_relay.shared.redis_names import DEFAULT
from benchmarks.processes import cpu_seconds, heard, module, tell
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import Stage, stage

RUNS = 1000
WARM_UP = 100
"""Runs that new workers answer before: their connections and statements are prepared then, as they are in service."""
AGENT = "words"
POOL = "default"
FILLING = "filling"
"""Nobody works for this pool: its lane is filled, and then given the other's name."""
LOOK_SECONDS = 0.05
TARGET = 0.5
TARGET_OF_TWO = 1.6

_FORGET = "TRUNCATE runs, threads, messages, transcripts CASCADE"

_EMPTY = "TRUNCATE runs, threads, messages, transcripts, workers CASCADE"

_FILL = """
    WITH ids AS (
        SELECT * FROM unnest(%(runs)s::uuid[], %(threads)s::uuid[]) AS ids (run_id, thread_id)
    ), threads AS (
        INSERT INTO threads (id, tenant, user_id, agent_type, metadata, last_seq)
        SELECT thread_id, 'acme', %(user)s, %(agent)s, '{}', 1 FROM ids WHERE thread_id IS NOT NULL
    )
    INSERT INTO runs (id, tenant, user_id, thread_id, seq, agent_type, pool, text_output, query, metadata,
                      user_message_id, message_id, deadline_at)
    SELECT run_id, 'acme', %(user)s, thread_id, CASE WHEN thread_id IS NOT NULL THEN 1 END, %(agent)s, %(pool)s, true,
           'hello', '{}', gen_random_uuid(), gen_random_uuid(), now() + interval '10 minutes'
    FROM ids
"""

_LEFT = "SELECT count(*) FROM runs WHERE finished_at IS NULL"

_TOOK = """
    SELECT extract(epoch FROM max(finished_at) - min(started_at)), count(*),
        count(*) FILTER (WHERE status = 'succeeded')
    FROM runs
"""


@dataclass(frozen=True)
class Pace:
    """How fast all runs were answered, and at what cost."""

    runs_a_second: float
    own_ms: float
    """CPU a run of the processes that answer."""
    servers_ms: float
    """CPU a run of PostgreSQL and Redis."""


@dataclass
class Queue:
    """The servers, empty or full."""

    on: Stage
    in_threads: bool

    def connect(self) -> psycopg.Connection:
        """Connect to the database."""
        return psycopg.connect(self.on.postgres.url(), autocommit=True)

    async def empty(self) -> None:
        """Forget everything."""
        with self.connect() as connection:
            connection.execute(_EMPTY)
        await self.on.redis.flushall()

    def fill(self, runs: int = RUNS) -> list[UUID]:
        """Store runs, each of a thread of its own or of none."""
        run_ids = [new_id() for _ in range(runs)]
        with self.connect() as connection:
            connection.execute(
                _FILL,
                {
                    "runs": run_ids,
                    "threads": [new_id() if self.in_threads else None for _ in run_ids],
                    "user": new_id(),
                    "agent": AGENT,
                    "pool": POOL,
                },
            )
        return run_ids

    async def ring(self, run_ids: list[UUID]) -> None:
        """Call for workers, for all of them in the same moment."""
        await RunQueue(self.on.redis).ring(
            QueueEntry(run_id, 1, FILLING, Lane.INTERACTIVE, "acme") for run_id in run_ids
        )
        await self.on.redis.rename(DEFAULT.lane(FILLING, Lane.INTERACTIVE), DEFAULT.lane(POOL, Lane.INTERACTIVE))

    async def emptied(self) -> float:
        """Wait until all runs have ended, and forget them; tell how many did a second."""
        with self.connect() as connection:
            while (left := connection.execute(_LEFT).fetchone()) and left[0]:  # noqa: ASYNC110  (other processes)
                await asyncio.sleep(LOOK_SECONDS)
            took = connection.execute(_TOOK).fetchone()
            connection.execute(_FORGET)
        assert took
        seconds, runs, succeeded = took
        assert succeeded == runs, f"{succeeded} of {runs} succeeded"
        return runs / float(seconds)

    @contextmanager
    def costs(self, pids: list[int]) -> Generator[list[float]]:
        """Note the CPU that these processes and the servers use meanwhile, in ms a run."""
        noted: list[float] = []
        before = cpu_seconds(pids), self.on.cpu_seconds()
        yield noted
        after = cpu_seconds(pids), self.on.cpu_seconds()
        noted += [(new - old) * 1000 / RUNS for new, old in zip(after, before, strict=True)]


async def ours(queue: Queue, processes: int) -> Pace:
    """Have worker processes answer."""
    await queue.empty()
    workers = [queue.on.service.begin("benchmarks.noop_worker") for _ in range(processes)]
    for worker in workers:
        await asyncio.to_thread(worker.await_line, r"worker\.ready")
    await queue.ring(queue.fill(WARM_UP))
    await queue.emptied()
    run_ids = queue.fill()
    with queue.costs([worker.process.pid for worker in workers]) as costs:
        await queue.ring(run_ids)
        runs_a_second = await queue.emptied()
    for worker in workers:
        worker.terminate()
    return Pace(runs_a_second, *costs)


async def bare(queue: Queue, processes: int) -> Pace:
    """Have bare psycopg claim and end them."""
    await queue.empty()
    queue.fill()
    with ExitStack() as stack:
        parts = [(str(part), str(processes)) for part in range(processes)]
        url = queue.on.postgres.url()
        working = [stack.enter_context(module("bare_runs", *part, DATABASE_URL=url)) for part in parts]
        for process in working:
            heard(process)
        with queue.costs([process.pid for process in working]) as costs:
            for process in working:
                tell(process, "go")
            for process in working:
                await asyncio.to_thread(heard, process)
        runs_a_second = await queue.emptied()
    return Pace(runs_a_second, *costs)


async def arq(queue: Queue, poll_seconds: float) -> Pace:
    """Have arq's own worker answer nothing."""
    await queue.empty()
    with module("stock_arq", str(RUNS), str(poll_seconds), REDIS_URL=queue.on.redis_url) as process:
        heard(process)
        with queue.costs([process.pid]) as costs:
            tell(process, "go")
            runs_a_second = float(await asyncio.to_thread(heard, process))
    return Pace(runs_a_second, *costs)


async def main(rounds: int) -> None:
    """Compare."""
    with stage() as on:
        on.service.worker().terminate()  # It has registered the agents.
        threads, stateless = Queue(on, in_threads=True), Queue(on, in_threads=False)
        sides: dict[str, Callable[[], Awaitable[Pace]]] = {
            "two bare transactions, 1 process": partial(bare, threads, 1),
            "two bare transactions, 2 processes": partial(bare, threads, 2),
            "1 worker": partial(ours, threads, 1),
            "2 workers": partial(ours, threads, 2),
            "4 workers": partial(ours, threads, 4),
            "two bare transactions, 1 process, no threads": partial(bare, stateless, 1),
            "1 worker, no threads": partial(ours, stateless, 1),
            "arq": partial(arq, threads, 0.5),
            "arq, polling every 10 ms": partial(arq, threads, 0.01),
        }
        paces = await interleaved(rounds, sides)
    table(
        f"Runs a second, {RUNS:,} that wait, {rounds} rounds; CPU a run",
        ["", "runs a second", "its own CPU, ms", "servers' CPU, ms"],
        [
            [
                side,
                Spread.of(pace.runs_a_second for pace in figures),
                Spread.of(pace.own_ms for pace in figures),
                Spread.of(pace.servers_ms for pace in figures),
            ]
            for side, figures in paces.items()
        ],
    )
    ratios = [
        ("1 worker", "two bare transactions, 1 process", f">= {TARGET}"),
        ("1 worker, no threads", "two bare transactions, 1 process, no threads", f">= {TARGET}"),
        ("2 workers", "1 worker", f">= {TARGET_OF_TWO}"),
        ("4 workers", "1 worker", ""),
        ("two bare transactions, 2 processes", "two bare transactions, 1 process", "what the servers leave"),
        ("1 worker", "arq", ""),
        ("1 worker", "arq, polling every 10 ms", ""),
    ]
    table(
        f"Ratios of runs a second, {rounds} rounds",
        ["of", "to", "ratio", "target"],
        [[one, other, _ratio(paces, one, other), target] for one, other, target in ratios],
    )


def _ratio(paces: dict[str, list[Pace]], one: str, other: str) -> Spread:
    figures = ([pace.runs_a_second for pace in paces[side]] for side in (one, other))
    return Spread.of_ratio(*figures)


if __name__ == "__main__":
    uvloop.run(main(asked()))
