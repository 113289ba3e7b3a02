"""What a batch of 64 MB costs an API process while it arrives: memory, and the patience of everybody else.

No worker is alive, and what was accepted is thrown away after each upload: only its arrival is measured.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import psycopg
import uvloop

from benchmarks.client import USER_ID, post_run
from benchmarks.processes import resident_bytes
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import Stage, port, stage
from tests.support.service import KEYS, Running

ITEMS = 50_000
BODY_BYTES = 64 << 20
REQUESTS = 300
SAMPLE_SECONDS = 0.02
MOST_MIB = 64
MOST_TIMES = 3
FORMS = {"JSON": "application/json", "NDJSON": "application/x-ndjson"}


def bodies() -> dict[str, bytes]:
    """Write as many items as a batch may have, and as long as its body may be."""
    shell = len(json.dumps({"custom_id": f"row-{ITEMS}", "query": ""}) + ", ")
    query = ("What is my balance, and why has it changed since Monday? " * 40)[: BODY_BYTES // ITEMS - shell]
    items = [json.dumps({"custom_id": f"row-{number}", "query": query}) for number in range(ITEMS)]
    return {
        "JSON": f'{{"agent_type": "words", "items": [{", ".join(items)}]}}'.encode(),
        "NDJSON": "\n".join(items).encode(),
    }


def upload(api: Running, form: str, body: bytes) -> float:
    """Submit a batch over a socket of its own; tell how long it took."""
    head = [
        f"POST /api/v1/batches{'?agent_type=words' if form == 'NDJSON' else ''} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        f"X-API-Key: {KEYS['acme']}",
        f"X-User-ID: {USER_ID}",
        f"Content-Type: {FORMS[form]}",
        f"Content-Length: {len(body)}",
    ]
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port(api))) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        connection.sendall(body)
        answer = connection.recv(65_536)
    assert b" 202 " in answer, answer
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen while requests were made."""

    p50_ms: float
    p99_ms: float
    mib: float = 0
    """Memory at its highest, above what was held before the first upload."""
    seconds: float = 0
    """How long the upload took."""


async def requests(api: Running, path: str, going_on: Callable[[], bool]) -> Seen:
    """Ask for something small, one after the other, as long as that goes on."""
    times: list[float] = []
    headers = {"X-API-Key": KEYS["acme"], "X-User-ID": USER_ID}
    async with httpx.AsyncClient(base_url=f"{api.url}/api/v1", headers=headers, timeout=60) as client:
        while going_on() or len(times) < REQUESTS:
            began = time.perf_counter()
            (await client.get(path)).raise_for_status()
            times.append(1000 * (time.perf_counter() - began))
    cuts = statistics.quantiles(times, n=100)
    return Seen(cuts[49], cuts[98])


async def beside(api: Running, path: str, form: str, body: bytes, idle_bytes: int) -> Seen:
    """Ask while a batch arrives, again and again until enough was asked."""
    highest, seconds = 0, list[float]()
    uploading = asyncio.create_task(asyncio.to_thread(upload, api, form, body))

    async def sample() -> None:
        nonlocal highest
        while not uploading.done():
            highest = max(highest, resident_bytes(api.process.pid))
            await asyncio.sleep(SAMPLE_SECONDS)
        seconds.append(await uploading)

    sampling = asyncio.create_task(sample())
    seen = await requests(api, path, lambda: not uploading.done())
    await sampling
    return Seen(seen.p50_ms, seen.p99_ms, (highest - idle_bytes) / (1 << 20), seconds[0])


def clear(on: Stage) -> None:
    """Throw away what was accepted."""
    with psycopg.connect(on.service.database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM runs WHERE batch_id IS NOT NULL")
        connection.execute("DELETE FROM batches")
        connection.execute("VACUUM runs")


async def main(rounds: int) -> None:
    """Compare."""
    rows: list[list[object]] = []
    for form, body in bodies().items():
        with stage() as on:
            on.register_agents()
            api = on.service.api()
            run_id = await post_run(port(api), "1 at 0", "words")

            await requests(api, f"/runs/{run_id}", lambda: False)
            idle_bytes = resident_bytes(api.process.pid)

            async def idle(api: Running = api, run_id: str = run_id) -> Seen:
                return await requests(api, f"/runs/{run_id}", lambda: False)

            async def busy(
                api: Running = api,
                path: str = f"/runs/{run_id}",
                form: str = form,
                body: bytes = body,
                on: Stage = on,
                idle_bytes: int = idle_bytes,
            ) -> Seen:
                seen = await beside(api, path, form, body, idle_bytes)
                clear(on)
                await on.redis.flushdb()
                return seen

            figures = await interleaved(rounds, {"idle": idle, "upload": busy})
            before, during = figures["idle"], figures["upload"]
            rows.append(
                [
                    form,
                    Spread.of(seen.seconds for seen in during),
                    Spread.of(seen.mib for seen in during),
                    Spread.of(seen.p99_ms for seen in before),
                    Spread.of(seen.p99_ms for seen in during),
                    Spread.of_ratio([seen.p99_ms for seen in during], [seen.p99_ms for seen in before]),
                    Spread.of_ratio([seen.p50_ms for seen in during], [seen.p50_ms for seen in before]),
                ]
            )
    table(
        f"A batch of {ITEMS:,} items and {BODY_BYTES >> 20} MiB arrives, {rounds} rounds"
        f" (targets: at most {MOST_MIB} MiB, p99 at most {MOST_TIMES} times idle)",
        ["form", "seconds", "MiB above idle", "p99 idle, ms", "p99 during, ms", "ratio of p99", "ratio of p50"],
        rows,
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
