"""A worker's publishing end alone: it tells numbered and timed events into the logs of runs that nobody works on.

Reads orders from standard input and says `done`: `paced <ticks> <seconds> <run>…` tells a text of each run at every
tick; `burst <events> <run>…` tells so many events of each run, ten a round trip. The same after `raw` goes over plain
pub/sub instead, batched alike, to the channels `raw:<run>`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from itertools import count
from uuid import UUID

import uvloop
from redis.asyncio import Redis

from agent_relay.shared.event_log import EventLog
from agent_relay.worker.execution.publisher import EventWriter, Publisher

EVENTS_A_TRIP = 10
LOG_SECONDS = 600


def stamp() -> str:
    """Say the time, as every process of this machine reads it."""
    return f"at {time.monotonic_ns()} "


class Relayed:
    """Tells as a worker does."""

    def __init__(self, redis: Redis) -> None:
        self._publisher = Publisher(EventLog(redis), _mine)
        self._publishing = asyncio.create_task(self._publisher.run())
        self._tellings: dict[str, EventWriter] = {}
        self._texts: dict[str, str] = {}

    async def texts(self, runs: list[str]) -> None:
        """Tell a longer text of each."""
        for run in runs:
            self._texts[run] = self._texts.get(run, "") + stamp()
            self._telling(run).show(self._texts[run])

    async def events(self, runs: list[str], numbers: range) -> None:
        """Tell some events of each, and wait until they stand in the logs."""
        for run in runs:
            for number in numbers:
                self._telling(run).tell(_event(number))
        await asyncio.gather(*(self._telling(run).flushed() for run in runs))

    def _telling(self, run: str) -> EventWriter:
        if run not in self._tellings:
            self._tellings[run] = self._publisher.begin(UUID(run), 1, LOG_SECONDS, fenced=lambda: None)
        return self._tellings[run]


class Raw:
    """Publishes the same, and keeps no log."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def texts(self, runs: list[str]) -> None:
        """Publish a text for each, in one round trip."""
        await self._publish(runs, stamp)

    async def events(self, runs: list[str], numbers: range) -> None:
        """Publish some events for each, as one message."""
        await self._publish(runs, lambda: "\n".join(str(_event(number)) for number in numbers))

    async def _publish(self, runs: list[str], say: Callable[[], str]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for run in runs:
            pipeline.publish(f"raw:{run}", say())
        await pipeline.execute()


def _event(number: int) -> dict[str, str]:
    content = f"number {number} {stamp()}"
    return {"event": "tool_result", "tool_call_id": str(number), "tool_name": "benchmark", "content": content}


async def _mine(_run: UUID, _attempt: int) -> bool:
    return True


async def main() -> None:
    """Do as told, until there is nothing more."""
    redis = Redis.from_url(os.environ["REDIS_URL"])
    ways: dict[str, Relayed | Raw] = {"relayed": Relayed(redis), "raw": Raw(redis)}
    numbers = count(1)
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        way, how, *numbers_and_runs = line.split()
        if how == "paced":
            ticks, seconds, *runs = numbers_and_runs
            for _ in range(int(ticks)):
                await ways[way].texts(runs)
                await asyncio.sleep(float(seconds))
        else:
            events, *runs = numbers_and_runs
            for _ in range(int(events) // EVENTS_A_TRIP):
                first = next(numbers) * EVENTS_A_TRIP
                await ways[way].events(runs, range(first, first + EVENTS_A_TRIP))
        print("done", flush=True)


if __name__ == "__main__":
    uvloop.run(main())
