"""How long from a worker's telling to the client's reading, and how many events a second, against raw pub/sub.

The raw side is a subscriber in redis-py that does nothing else; what a chunk of HTTP takes over loopback, from a plain
`StreamingResponse`, is measured beside it.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import subprocess
import time
from contextlib import suppress
from functools import partial
from typing import Any

import uvloop
from redis.asyncio import Redis

from benchmarks.client import Response, post_run, request
from benchmarks.processes import heard, module, tell
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import Stage, port, stage
from tests.support.service import Running

RUNS = (1, 5, 20)
"""Runs that tell at the same moment: a worker's share their round trips, so that they come in bursts."""
TICKS = 60
TICK_SECONDS = 0.03
EVENTS = 1000
WRITES = 200
_STAMP = re.compile(rb"at (\d+) ")


class Noted:
    """The delays of what has come, and its number."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.delays: list[float] = []
        self.count = 0
        self.all = asyncio.Event()
        self.last = 0.0

    def note(self, data: bytes) -> None:
        """Read the newest stamp."""
        self.last = time.perf_counter()
        self.count += data.count(b"number ") or 1
        if stamps := _STAMP.findall(data):
            self.delays.append((time.monotonic_ns() - int(stamps[-1])) / 1e6)
        if self.count >= self._wanted:
            self.all.set()


class Played:
    """A publisher, and what hears it."""

    def __init__(self, on: Stage, api: Running, publisher: subprocess.Popen[str]) -> None:
        self.on = on
        self.port = port(api)
        self.publisher = publisher

    async def ordered(self, order: str) -> float:
        """Have the publisher do something; tell how long it took."""
        began = time.perf_counter()
        tell(self.publisher, order)
        await asyncio.to_thread(heard, self.publisher)
        return time.perf_counter() - began

    async def relayed(self, order: str, count: int, events: int) -> tuple[Noted, float]:
        """Follow so many runs, and have so many events of each told."""
        runs = [await post_run(self.port, "hello", "words") for _ in range(count)]
        path = "/api/v1/runs/{}/stream?deltas=true"
        responses = [await request(self.port, "GET", path.format(run)) for run in runs]
        noted = Noted(count * events)
        reading = [asyncio.create_task(_read(response, noted)) for response in responses]
        took = await self._told(f"relayed {order} {' '.join(runs)}", noted)
        for task, response in zip(reading, responses, strict=True):
            task.cancel()
            response.close()
        return noted, took

    async def raw(self, order: str, count: int, events: int) -> tuple[Noted, float]:
        """Subscribe, and have the same published."""
        redis = Redis.from_url(self.on.redis_url)
        noted = Noted(count * events)
        channels = [f"raw:{number}" for number in range(count)]
        async with redis.pubsub() as pubsub:
            await pubsub.subscribe(*channels)
            listening = asyncio.create_task(_listen(pubsub, noted))
            await asyncio.sleep(0.1)
            took = await self._told(f"raw {order} {' '.join(map(str, range(count)))}", noted)
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
        await redis.aclose()
        return noted, took

    async def _told(self, order: str, noted: Noted) -> float:
        began = time.perf_counter()
        await self.ordered(order)
        with suppress(TimeoutError):
            await asyncio.wait_for(noted.all.wait(), 5)
        return noted.last - began


async def _read(response: Response, noted: Noted) -> None:
    async for line in response.lines():
        if b"at " in line:
            noted.note(line)


async def _listen(pubsub: Any, noted: Noted) -> None:
    async for message in pubsub.listen():
        if message["type"] == "message":
            noted.note(message["data"])


async def written(plain_port: int) -> float:
    """Measure a chunk over loopback: the median of many, in ms."""
    noted = Noted(WRITES)
    response = await request(plain_port, "GET", f"/timed/{WRITES}")
    await _read(response, noted)
    response.close()
    return statistics.median(noted.delays)


async def delay(play: Played, way: str, runs: int) -> float:
    """Measure the delay at a pace of thirty texts a second and run: the median, in ms."""
    noted, _ = await getattr(play, way)(f"paced {TICKS} {TICK_SECONDS}", runs, TICKS)
    return statistics.median(noted.delays)


async def speed(play: Played, way: str) -> float:
    """Measure events a second, as fast as they come."""
    noted, seconds = await getattr(play, way)(f"burst {EVENTS}", RUNS[-1], EVENTS)
    assert noted.count >= RUNS[-1] * EVENTS, f"{way}: {noted.count} of {RUNS[-1] * EVENTS}"
    return noted.count / seconds


async def main(rounds: int) -> None:
    """Compare."""
    rows: list[list[object]] = []
    with stage() as on, module("plain_streams") as plain:
        plain_port = int(heard(plain))
        on.register_agents()
        api = on.service.api()
        with module("publishing", REDIS_URL=on.redis_url) as publisher:
            heard(publisher)
            play = Played(on, api, publisher)
            for runs in RUNS:
                delays = await interleaved(
                    rounds,
                    {
                        "raw": partial(delay, play, "raw", runs),
                        "relayed": partial(delay, play, "relayed", runs),
                        "written": partial(written, plain_port),
                    },
                )
                allowed = [3 * raw + write for raw, write in zip(delays["raw"], delays["written"], strict=True)]
                ratio = Spread.of_ratio(delays["relayed"], allowed)
                rows.append([runs, *(Spread.of(delays[side]) for side in ("raw", "written", "relayed")), ratio, "<= 1"])
            speeds = await interleaved(
                rounds, {"raw": partial(speed, play, "raw"), "relayed": partial(speed, play, "relayed")}
            )
    table(
        f"Delay from the worker to the client, p50 in ms, {rounds} rounds",
        ["runs in a burst", "raw pub/sub", "one loopback write", "agent-relay", "ours / (3 x raw + write)", "target"],
        rows,
    )
    table(
        f"Events a second, ten a round trip and run, {rounds} rounds",
        ["raw pub/sub", "agent-relay", "ratio"],
        [[Spread.of(speeds["raw"]), Spread.of(speeds["relayed"]), Spread.of_ratio(speeds["relayed"], speeds["raw"])]],
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
