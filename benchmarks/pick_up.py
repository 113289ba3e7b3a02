"""How soon a free worker has a new run, and what waiting for one costs, against stock arq at two paces of polling.

Ours counts from the commit of the run to the return of its claim, the ring and a transaction with fsync between them;
arq's from the return of `enqueue_job` to the first line of the job. What is measured stands still otherwise.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import statistics
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns

import uvloop
from arq import ArqRedis
from redis.asyncio import ConnectionPool

from agent_relay.shared.failpoints import Action, Failpoint
from benchmarks.client import post_run
from benchmarks.polling import JOB
from benchmarks.processes import cpu_seconds, heard, module
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import Stage, port, stage
from tests.support.service import Running

TRIES_A_ROUND = 40
LONGEST_PAUSE_SECONDS = 0.3
"""Somebody comes at any moment between two polls."""
SETTLE_SECONDS = 0.5
IDLE_SECONDS = 20
ARQ_POLLS = {"arq": 0.0, "arq, polling every 10 ms": 0.01}
COMMITTED, CLAIMED = Failpoint.RUN_ACCEPTED, Failpoint.RUN_CLAIMED
TARGET_MS = 10
TARGET_TIMES = 25
TARGET_PERCENT = 1


@dataclass(frozen=True, slots=True)
class PickUp:
    """Milliseconds from acceptance to a worker's beginning."""

    p50: float
    p95: float

    @classmethod
    def of(cls, accepted: Iterable[int], began: Iterable[int]) -> PickUp:
        """Sum up a round, from nanoseconds."""
        times = [(end - start) / 1e6 for start, end in zip(accepted, began, strict=True)]
        return cls(statistics.median(times), statistics.quantiles(times, n=20)[-1])


async def ours(api: Running, worker: Running, tries: int = TRIES_A_ROUND) -> PickUp:
    """Post runs, one at any moment."""
    run_ids: list[str] = []
    for _ in range(tries):
        await asyncio.sleep(random.uniform(0, LONGEST_PAUSE_SECONDS))  # noqa: S311
        run_ids.append(await post_run(port(api), "1 at 0", "words"))
    await asyncio.sleep(SETTLE_SECONDS)
    committed, claimed = stamps_of(api, COMMITTED), stamps_of(worker, CLAIMED)
    return PickUp.of([committed[run_id] for run_id in run_ids], [claimed[run_id] for run_id in run_ids])


async def arqs(redis: ArqRedis, worker: subprocess.Popen[str]) -> PickUp:
    """Enqueue jobs, one at any moment; the worker is frozen before and after."""
    worker.send_signal(signal.SIGCONT)
    await asyncio.sleep(SETTLE_SECONDS)
    enqueued: dict[str, int] = {}
    for _ in range(TRIES_A_ROUND):
        await asyncio.sleep(random.uniform(0, LONGEST_PAUSE_SECONDS))  # noqa: S311
        job = await redis.enqueue_job(JOB)
        assert job
        enqueued[job.job_id] = monotonic_ns()
    lines = [(await asyncio.to_thread(heard, worker)).split() for _ in enqueued]
    worker.send_signal(signal.SIGSTOP)
    return PickUp.of([enqueued[job_id] for job_id, _ in lines], [int(started) for _, started in lines])


async def idle(pids: dict[str, int]) -> dict[str, float]:
    """Measure percents of a core of processes that have nothing to do."""
    before = {name: cpu_seconds([pid]) for name, pid in pids.items()}
    await asyncio.sleep(IDLE_SECONDS)
    return {name: (cpu_seconds([pid]) - before[name]) * 100 / IDLE_SECONDS for name, pid in pids.items()}


def stamped(on: Stage, **environment: str) -> tuple[Running, Running]:
    """Start an API process and a worker that log when a run was committed, and when its claim returned."""
    stamps = ",".join(f"{failpoint}={Action.STAMP}" for failpoint in (COMMITTED, CLAIMED))
    return on.service.api(FAILPOINTS=stamps, **environment), on.service.worker(FAILPOINTS=stamps, **environment)


def stamps_of(process: Running, failpoint: Failpoint) -> dict[str, int]:
    """Read when a process came by a failpoint, nanoseconds by run."""
    stamp = rf"failpoint\.stamped name={failpoint} nanoseconds=(\d+) .*?\brun_id=(\S+)"
    return {run_id: int(nanoseconds) for nanoseconds, run_id in re.findall(stamp, process.log.read_text())}


async def main(rounds: int) -> None:
    """Compare."""
    with stage() as on, ExitStack() as stack:
        api, worker = stamped(on)
        urls = {name: on.redis_server.url(number) for number, name in enumerate(ARQ_POLLS, start=1)}
        pollers = {
            name: stack.enter_context(module("polling", str(seconds), REDIS_URL=urls[name]))
            for name, seconds in ARQ_POLLS.items()
        }
        for poller in pollers.values():
            heard(poller)
        pids = {
            "worker": worker.process.pid,
            "API": api.process.pid,
            "PostgreSQL under both": on.postgres.process.pid,
            **{name: poller.pid for name, poller in pollers.items()},
        }
        await asyncio.sleep(SETTLE_SECONDS)
        costs = [await idle(pids) for _ in range(rounds)]
        for poller in pollers.values():
            poller.send_signal(signal.SIGSTOP)
        redis = {name: ArqRedis(ConnectionPool.from_url(url)) for name, url in urls.items()}
        figures = await interleaved(
            rounds,
            {
                "agent-relay": partial(ours, api, worker),
                **{name: partial(arqs, redis[name], poller) for name, poller in pollers.items()},
            },
        )
    targets = {"agent-relay": f"p50 <= {TARGET_MS}", "arq": f">= {TARGET_TIMES}"}
    table(
        f"From acceptance to a worker's beginning, ms, {rounds} rounds of {TRIES_A_ROUND}",
        ["", "p50", "p95", "p50 / ours", "target"],
        [
            [
                name,
                Spread.of(each.p50 for each in times),
                Spread.of(each.p95 for each in times),
                Spread.of_ratio([each.p50 for each in times], [each.p50 for each in figures["agent-relay"]]),
                targets.get(name, ""),
            ]
            for name, times in figures.items()
        ],
    )
    table(
        f"With nothing to do, percent of a core, {rounds} rounds of {IDLE_SECONDS} s",
        ["", "%", "target"],
        [
            [name, Spread.of(cost[name] for cost in costs), f"<= {TARGET_PERCENT}" if name == "worker" else ""]
            for name in pids
        ],
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
