"""What an open stream costs an API process while nothing happens, and how soon an event reaches a thousand of them.

No worker is alive: the runs are queued, and what they tell is told by the benchmark, as a worker would.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast
from uuid import UUID

import uvloop

from agent_relay.shared.event_log import BEFORE_ALL, Append, Entry, EventLog, Id, text_body
from benchmarks.client import message, post, post_run
from benchmarks.processes import allow_many_sockets, heard, module, resident_bytes
from benchmarks.rounds import Spread, asked, table
from benchmarks.stage import Stage, port, stage

STREAMS = (1000, 5000)
WARM_UP = 200
OPENED_AT_ONCE = 100
SETTLE_SECONDS = 2.0
EVENTS = 10
LOG_SECONDS = 3600
TARGET_KIB = 24


class Watcher(asyncio.Protocol):
    """One client: it notes when a line that is waited for has come."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.opened = asyncio.get_running_loop().create_future()
        self.wanted = b""
        self.seen: asyncio.Future[float] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Look for the end of the headers and the first event, then for what is waited for."""
        if not self.opened.done():
            self._tail += data
            if b'"message_created"' in self._tail:
                assert self._tail.startswith(b"HTTP/1.1 200"), self._tail
                self.opened.set_result(None)
        elif self.seen is not None and not self.seen.done() and self.wanted in data:
            self.seen.set_result(time.perf_counter())

    def wait_for(self, wanted: bytes) -> asyncio.Future[float]:
        """Wait until that has come."""
        self.wanted = wanted
        self.seen = asyncio.get_running_loop().create_future()
        return self.seen


async def opened(port: int, requests: list[bytes]) -> list[Watcher]:
    """Open streams, a hundred at a time."""
    watchers: list[Watcher] = []
    loop = asyncio.get_running_loop()
    for first in range(0, len(requests), OPENED_AT_ONCE):
        some = [
            loop.create_connection(lambda r=request: Watcher(r), "127.0.0.1", port)
            for request in requests[first : first + OPENED_AT_ONCE]
        ]
        made = [watcher for _, watcher in await asyncio.gather(*some)]
        await asyncio.gather(*(watcher.opened for watcher in made))
        watchers += made
    return watchers


@dataclass(frozen=True, slots=True)
class Cost:
    """What so many streams cost."""

    kib_a_stream: float
    connections: tuple[int, int]
    """Redis connections of everybody with one stream, and with all."""
    all_reached_ms: float


async def measure(
    port: int,
    pid: int,
    requests: list[bytes],
    say: Callable[[int], Awaitable[bytes]],
    connections: Callable[[], Awaitable[int]],
) -> Cost:
    """Open streams to a process that has seen some before, and then have something said on them."""
    warmed = await opened(port, requests[:WARM_UP])
    for watcher in warmed[1:]:
        watcher.transport.close()
    await asyncio.sleep(SETTLE_SECONDS)
    before, connected = resident_bytes(pid), await connections()
    watchers = warmed[:1] + await opened(port, requests[1:])
    await asyncio.sleep(SETTLE_SECONDS)
    kib = (resident_bytes(pid) - before) / 1024 / (len(watchers) - 1)
    connected_with_all = await connections()
    times: list[float] = []
    for number in range(1, EVENTS + 1):
        waiting = [watcher.wait_for(b"event number %d " % number) for watcher in watchers]
        began = time.perf_counter()
        await say(number)
        times.append(1000 * (max(await asyncio.gather(*waiting)) - began))
        await asyncio.sleep(0.1)
    for watcher in watchers:
        watcher.transport.close()
    return Cost(kib, (connected, connected_with_all), statistics.median(times))


async def ours(on: Stage, streams: int, *, runs: int, of_threads: bool = False) -> Cost:
    """Measure a fresh API process whose streams follow so many runs; all of them tell the same at once.

    With `of_threads`, each run is in a thread, whose stream is followed.
    """
    api = on.service.api()
    log = EventLog(on.redis)
    if of_threads:
        threads = [await post(port(api), "/api/v1/threads", {"agent_type": "words"}) for _ in range(runs)]
        run_ids = [await post(port(api), "/api/v1/runs", {"query": "hello", "thread_id": each}) for each in threads]
        requests = [message("GET", f"/api/v1/threads/{threads[n % runs]}/stream") for n in range(streams)]
    else:
        run_ids = [await post_run(port(api), "hello", "words") for _ in range(runs)]
        requests = [message("GET", f"/api/v1/runs/{run_ids[n % runs]}/stream") for n in range(streams)]

    async def say(number: int) -> bytes:
        entry = Entry(Id(1, number), text_body(f"event number {number} of the benchmark"))
        wrote = Id(1, number - 1) if number > 1 else BEFORE_ALL
        for first in range(0, runs, 500):
            some = run_ids[first : first + 500]
            await log.append([Append(UUID(run_id), wrote, [entry], LOG_SECONDS) for run_id in some])
        return b""

    async def connections() -> int:
        return len(await on.redis.client_list())

    try:
        return await measure(port(api), api.process.pid, requests, say, connections)
    finally:
        api.terminate()
        await on.redis.flushdb()


async def plain(streams: int) -> Cost:
    """Measure FastAPI's `StreamingResponse`, which waits for an event in memory."""
    with module("plain_streams") as process:
        plain_port = int(heard(process))

        async def say(number: int) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", plain_port)
            writer.write(message("GET", f"/say/{number}"))
            await reader.read()
            writer.close()
            return b""

        async def connections() -> int:
            return 0

        return await measure(plain_port, process.pid, [message("GET", "/stream")] * streams, say, connections)


async def main(rounds: int) -> None:
    """Compare."""
    allow_many_sockets()
    rows: list[list[object]] = []
    with stage() as on:
        on.register_agents()
        for streams in STREAMS:
            sides: dict[str, list[Cost]] = {
                "of one run": [],
                "of a run each": [],
                "of a thread each": [],
                "StreamingResponse": [],
            }
            for _ in range(rounds):  # Each side is a fresh process, so there is nothing to warm up.
                sides["of one run"].append(await ours(on, streams, runs=1))
                sides["of a run each"].append(await ours(on, streams, runs=streams))
                sides["of a thread each"].append(await ours(on, streams, runs=streams, of_threads=True))
                sides["StreamingResponse"].append(await plain(streams))
            for name, costs in sides.items():
                is_ours = name.startswith("of")
                rows.append(
                    [
                        f"{streams:,} {name}",
                        Spread.of(cost.kib_a_stream for cost in costs),
                        f"<= {TARGET_KIB}" if is_ours else "",
                        sorted({cost.connections for cost in costs}) if is_ours else "",
                        Spread.of(cost.all_reached_ms for cost in costs),
                    ]
                )
    table(
        f"Open idle streams of one process, {rounds} rounds",
        ["streams", "KiB a stream", "target", "Redis connections with 1 and with all", "ms until an event reached all"],
        rows,
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
