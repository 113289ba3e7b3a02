"""What an answer costs as it gets longer, in CPU of all processes and in bytes, against the cumulative design."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import uvloop

from agent_relay.shared.redis_names import PREFIX
from benchmarks.agents import tokens_of
from benchmarks.client import request
from benchmarks.processes import cpu_seconds, heard, module
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import Stage, port, stage
from tests.support.service import Running

LENGTHS = (500, 1000, 2000, 4000, 8000)
TOKENS_A_ROUND = 8000
"""Short answers are asked for several times, so that there is something to measure; not the cumulative ones."""
TARGET_CPU_RATIO = 12
BYTES_AN_ENTRY = 100


@dataclass(frozen=True, slots=True)
class Cost:
    """What one answer cost."""

    cpu_ms: float
    wire_bytes: float
    log_bytes: float
    entries: float


async def logged(on: Stage, pattern: str) -> tuple[int, int]:
    """Sum the payload and the number of the entries of all logs, and delete them."""
    size = count = 0
    keys = cast("AsyncIterator[bytes]", on.redis.scan_iter(match=pattern, _type="STREAM"))
    async for key in keys:
        rows: list[Any] = await on.redis.xrange(key)
        size += sum(len(fields[b"e"]) for _, fields in rows)
        count += len(rows)
        await on.redis.delete(key)
    return size, count


async def relayed(on: Stage, api: Running, worker: Running, length: int, *, deltas: bool) -> Cost:
    """Measure ours."""
    path = f"/api/v1/agent/stream?deltas={str(deltas).lower()}"
    return await cost(on, port(api), path, f"{PREFIX}log:*", length, lambda: on.cpu_seconds(api, worker))


async def cost(on: Stage, port: int, path: str, logs: str, length: int, cpu: Callable[[], float]) -> Cost:
    """Ask for answers of that length, one after the other."""
    times = TOKENS_A_ROUND // length if logs == f"{PREFIX}log:*" else 1
    before, wire = cpu(), 0
    for _ in range(times):
        response = await request(port, "POST", path, {"query": str(length), "agent_type": "words"})
        await response.drain()
        response.close()
        wire += response.wire_bytes
    used = cpu() - before
    size, entries = await logged(on, logs)
    return Cost(1000 * used / times, wire / times, size / times, entries / times)


async def main(rounds: int) -> None:
    """Compare, with the setting of the service and with a validation at every token."""
    with (
        stage() as on,
        module("cumulative", "api", REDIS_URL=on.redis_url) as rival_api,
        module("cumulative", "worker", REDIS_URL=on.redis_url) as rival_worker,
    ):
        rival_port = int(heard(rival_api))
        heard(rival_worker)
        api, worker = on.service.api(), on.service.worker()

        def rival_cpu() -> float:
            return cpu_seconds([on.redis_server.process.pid, rival_api.pid, rival_worker.pid])

        sides: dict[str, Callable[[], Awaitable[Cost]]] = {}
        for length in LENGTHS:
            sides[f"whole {length}"] = partial(relayed, on, api, worker, length, deltas=False)
            sides[f"deltas {length}"] = partial(relayed, on, api, worker, length, deltas=True)
            sides[f"cumulative {length}"] = partial(cost, on, rival_port, "/stream", "cumulative:*", length, rival_cpu)
        figures = await interleaved(rounds, sides)
        worker.terminate()
        worker = on.service.worker(PARTIAL_INTERVAL_SECONDS="0")
        every = await interleaved(
            rounds,
            {
                f"every {length}": partial(relayed, on, api, worker, length, deltas=True)
                for length in (LENGTHS[0], 1000, LENGTHS[-1])
            },
        )
    report(rounds, figures | every)


def report(rounds: int, figures: dict[str, list[Cost]]) -> None:
    """Print what was measured."""
    rows: list[list[object]] = []
    for name, costs in figures.items():
        kind, length = name.split()
        final = len("".join(tokens_of(int(length))))
        entries = Spread.of(cost.entries for cost in costs)
        allowed = max(cost.log_bytes - BYTES_AN_ENTRY * cost.entries for cost in costs) / final
        rows.append(
            [
                kind,
                length,
                Spread.of(cost.cpu_ms for cost in costs),
                Spread.of(cost.log_bytes / final for cost in costs),
                entries,
                f"{max(allowed, 0):.2f}",
                Spread.of(cost.wire_bytes / final for cost in costs),
            ]
        )
    rows.sort(key=lambda row: (str(row[0]), int(str(row[1]))))
    table(
        f"Answers by length, unpaced, {rounds} rounds (bytes as multiples of the final text)",
        ["design", "tokens", "CPU ms", "log", "entries", "log beyond 100 B an entry (<= 2)", "wire"],
        rows,
    )
    ratios: list[list[object]] = []
    for kind in ("deltas", "whole", "every", "cumulative"):
        long, short = ([cost.cpu_ms for cost in figures[f"{kind} {n}"]] for n in (8000, 1000))
        ratios.append([kind, Spread.of_ratio(long, short), f"<= {TARGET_CPU_RATIO}" if kind != "cumulative" else ""])
    table("CPU(8,000 tokens) / CPU(1,000 tokens)", ["design", "ratio", "target"], ratios)
    saved = [
        [
            length,
            *(
                Spread.of_ratio(*([getattr(c, f) for c in figures[f"{k} {length}"]] for k in ("cumulative", "deltas")))
                for f in ("cpu_ms", "log_bytes", "wire_bytes")
            ),
        ]
        for length in LENGTHS
    ]
    table("The cumulative design over ours with deltas", ["tokens", "CPU", "log", "wire"], saved)


if __name__ == "__main__":
    uvloop.run(main(asked()))
