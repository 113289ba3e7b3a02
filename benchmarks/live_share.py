"""Which share of the entries reaches followers by announcement, without a read of the log, while nothing fails."""

from __future__ import annotations

import asyncio
import re

import httpx
import uvloop

from benchmarks.client import request
from benchmarks.rounds import Spread, asked, table
from benchmarks.stage import port, stage

RUNS = 50
QUERY = "200 at 80"
TARGET = 0.95
_ENTRIES = re.compile(r'agent_relay_entries_total\{way="(\w+)"\} (\S+)')


async def entries(url: str) -> dict[str, float]:
    """Read the counters of an API process."""
    async with httpx.AsyncClient() as client:
        metrics = (await client.get(f"{url}/metrics")).text
    return {way: float(count) for way, count in _ENTRIES.findall(metrics)}


async def ask(port: int) -> None:
    """Ask, and follow to the end."""
    response = await request(port, "POST", "/api/v1/agent/stream", {"query": QUERY, "agent_type": "words"})
    await response.drain()
    response.close()


async def main(rounds: int) -> None:
    """Count."""
    shares: list[float] = []
    total = 0.0
    with stage() as on:
        api = on.service.api()
        on.service.worker()
        for _ in range(rounds):
            before = await entries(api.url)
            await asyncio.gather(*(ask(port(api)) for _ in range(RUNS)))
            came = {way: count - before[way] for way, count in (await entries(api.url)).items()}
            shares.append(came["live"] / (came["live"] + came["read"]))
            total += came["live"] + came["read"]
    table(
        f"Entries that came live, {RUNS} runs at once, {rounds} rounds",
        ["entries", "share that came live", "target"],
        [[f"{total:,.0f}", Spread.of(shares), f">= {TARGET}"]],
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
