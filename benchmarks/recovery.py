"""How soon the next attempt of a run begins once its process or its machine dies, or its worker is told to stop.

Counted from the signal to the next `message_started` on the stream of a client that was there all the while. All
processes are new each time: nothing is warm that would not be just after a start.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

import psutil
import psycopg
import uvloop

from benchmarks.client import request
from benchmarks.rounds import LEAST, Spread, interleaved, table
from benchmarks.stage import Stage, port, stage
from tests.support.service import Running

QUERY = {"query": "4000 at 20", "agent_type": "words"}
SHORT_LEASE, DEFAULT_LEASE = 3.0, 15.0
BEATS_A_LEASE = 5
LATE_SECONDS = 2.0
SETTLE_SECONDS = 2.0
TARGET_SECONDS = 1.0

_HOLDER = "SELECT pid FROM runs JOIN workers ON workers.id = worker_id WHERE runs.id = %s"

Strike = Callable[[int], Awaitable[float]]
"""Does something to the process that holds the run; returns when."""


class Ward:
    """A stage on which workers come and go."""

    def __init__(self, on: Stage, api: Running) -> None:
        self._on = on
        self._api = api

    async def worker(self, *arguments: str, **environment: str) -> Running:
        """Start one, or a parent of several, and give it a moment."""
        running = await asyncio.to_thread(self._on.service.worker, *arguments, **environment)
        await asyncio.sleep(SETTLE_SECONDS)
        return running

    async def recovery(self, strike: Strike) -> float:
        """Have a run begun, strike whoever holds it, and wait for its next attempt; returns the seconds."""
        response = await request(port(self._api), "POST", "/api/v1/agent/stream", QUERY)
        events = response.events()
        run_id = (await anext(events))["run_id"]
        await _until(events, "text_delta")
        with psycopg.connect(self._on.postgres.url()) as connection:
            holder = connection.execute(_HOLDER, [UUID(run_id)]).fetchone()
        assert holder
        struck = await strike(holder[0])
        await _until(events, "message_started")
        seconds = time.perf_counter() - struck
        response.close()
        cancelled = await request(port(self._api), "POST", f"/api/v1/runs/{run_id}/cancel?wait=30")
        await cancelled.drain()
        cancelled.close()
        return seconds

    async def a_process(self, processes: int) -> float:
        """Kill the process that holds the run, one of so many under a parent."""
        parent = await self.worker("--processes", str(processes))
        seconds = await self.recovery(_kill)
        await asyncio.to_thread(parent.terminate, 60)
        return seconds

    async def a_machine(self, lease: float) -> float:
        """Kill a parent and all its processes, where another machine's worker is alive."""
        patience = {"LEASE_SECONDS": str(lease), "BEAT_SECONDS": str(lease / BEATS_A_LEASE)}
        here = await self.worker("--processes", "2", **patience)
        there: list[Running] = []

        async def strike(_: int) -> float:
            there.append(await self.worker(**patience))
            parent = psutil.Process(here.process.pid)
            for process in (parent, *parent.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            return time.perf_counter()

        seconds = await self.recovery(strike)
        await asyncio.to_thread(there[0].terminate, 60)
        return seconds

    async def a_stop(self) -> float:
        """Tell the worker that holds the run to stop at once, where another one is alive."""
        here = await self.worker(DRAIN_SECONDS="0")
        there: list[Running] = []

        async def strike(_: int) -> float:
            there.append(await self.worker())
            here.process.terminate()
            return time.perf_counter()

        seconds = await self.recovery(strike)
        await asyncio.to_thread(there[0].terminate, 60)
        return seconds


async def _kill(pid: int) -> float:
    os.kill(pid, signal.SIGKILL)
    return time.perf_counter()


async def _until(events: AsyncIterator[dict[str, Any]], name: str) -> None:
    async for event in events:
        if event["event"] == name:
            return
    raise AssertionError(f"the stream ended before {name}")


async def main(rounds: int, words: Sequence[str]) -> None:
    """Measure each, or those whose name holds one of the words."""
    with stage() as on:
        on.service.worker().terminate()  # It has registered the agents.
        api = on.service.api()
        ward = Ward(on, api)
        sides: dict[str, tuple[Callable[[], Awaitable[float]], float]] = {
            "kill -9 of a process, another under the same parent": (partial(ward.a_process, 2), TARGET_SECONDS),
            "kill -9 of the only process under a parent": (partial(ward.a_process, 1), TARGET_SECONDS),
            "SIGTERM, DRAIN_SECONDS=0": (ward.a_stop, TARGET_SECONDS),
            **{
                f"kill -9 of parent and all, a lease of {lease:g} s": (
                    partial(ward.a_machine, lease),
                    lease + LATE_SECONDS,
                )
                for lease in (SHORT_LEASE, DEFAULT_LEASE)
            },
        }
        asked_for = {
            name: measure for name, (measure, _) in sides.items() if not words or any(word in name for word in words)
        }
        figures = await interleaved(rounds, asked_for)
    table(
        f"From the signal to the next attempt, {rounds} times each",
        ["", "s", "target"],
        [[name, Spread.of(seconds), f"<= {sides[name][1]:g}"] for name, seconds in figures.items()],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*", help="only what is called so, as `SIGTERM`, or `another`, or `only`")
    parser.add_argument("--rounds", type=int, default=LEAST, help=f"rounds to run (default: {LEAST})")
    arguments = parser.parse_args()
    uvloop.run(main(arguments.rounds, arguments.words))
