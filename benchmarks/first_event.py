"""How much later the first event and the first partial come than from an agent that is streamed from the request."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import uvloop

from benchmarks.client import request
from benchmarks.processes import heard, module
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import port, stage

TRIES_A_ROUND = 20
QUERY = "12 at 80"
TARGET_MS = 15


@dataclass(frozen=True, slots=True)
class First:
    """Milliseconds from the request to the first event, and to the first partial."""

    event: float
    partial: float


async def measure(port: int, path: str) -> First:
    """Ask several times; the median of each."""
    events: list[float] = []
    partials: list[float] = []
    for _ in range(TRIES_A_ROUND):
        began = time.perf_counter()
        response = await request(port, "POST", path, {"query": QUERY, "agent_type": "form"})
        first_event = 0.0
        async for line in response.lines():
            elapsed = 1000 * (time.perf_counter() - began)
            first_event = first_event or elapsed
            if b'"text_delta"' in line:
                events.append(first_event)
                partials.append(elapsed)
                break
        await response.drain()  # The next is not to wait for this one.
        response.close()
    return First(statistics.median(events), statistics.median(partials))


async def main(rounds: int) -> None:
    """Compare."""
    with stage() as on, module("direct") as direct:
        direct_port = int(heard(direct))
        api = on.service.api()
        on.service.worker()
        figures = await interleaved(
            rounds,
            {
                "direct": lambda: measure(direct_port, "/stream"),
                "agent-relay": lambda: measure(port(api), "/api/v1/agent/stream"),
            },
        )
    rows: list[list[object]] = []
    for name in ("event", "partial"):
        ours = [getattr(first, name) for first in figures["agent-relay"]]
        theirs = [getattr(first, name) for first in figures["direct"]]
        added = Spread.of(a - b for a, b in zip(ours, theirs, strict=True))
        rows.append([f"first {name}", Spread.of(theirs), Spread.of(ours), added, f"<= {TARGET_MS}"])
    table(
        f"First event and first partial, ms, {rounds} rounds of {TRIES_A_ROUND}",
        ["", "direct", "agent-relay", "added", "target"],
        rows,
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
