"""How soon a worker begins an interactive run while it answers a batch of 20,000, against one with nothing to do.

From the commit of the run to the return of its claim, as in `pick_up`. The batch's answers come at the pace of a model,
or as fast as the worker can: then the worker's one core is what both want.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvloop

from benchmarks.batch_upload import upload
from benchmarks.client import post_run, request
from benchmarks.pick_up import CLAIMED, COMMITTED, LONGEST_PAUSE_SECONDS, TRIES_A_ROUND, PickUp, stamped, stamps_of
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import port, stage
from tests.support.service import Running

ITEMS = 20_000
PACES = {"40 tokens, 20 a second": "40 at 20", "40 tokens, unpaced": "40 at 0"}
UNDER_WAY_SECONDS = 2.0
LOOK_SECONDS = 0.2
LONGEST_SECONDS = 120
MOST_TIMES = 3


def body(query: str) -> bytes:
    """Write a batch of one query."""
    return "\n".join(json.dumps({"custom_id": f"row-{n}", "query": query}) for n in range(ITEMS)).encode()


async def picked_up(api: Running, worker: Running) -> PickUp:
    """Post runs, one at any moment, and wait until all of them were begun."""
    run_ids: list[str] = []
    for _ in range(TRIES_A_ROUND):
        await asyncio.sleep(random.uniform(0, LONGEST_PAUSE_SECONDS))  # noqa: S311
        run_ids.append(await post_run(port(api), "1 at 0", "words"))
    until = time.monotonic() + LONGEST_SECONDS
    while not (claimed := stamps_of(worker, CLAIMED)).keys() >= set(run_ids):
        assert time.monotonic() < until
        await asyncio.sleep(LOOK_SECONDS)
    committed = stamps_of(api, COMMITTED)
    return PickUp.of([committed[run_id] for run_id in run_ids], [claimed[run_id] for run_id in run_ids])


@dataclass(frozen=True, slots=True)
class Seen:
    """How soon runs were picked up, and how many of the batch beside them ended a second meanwhile."""

    pick_up: PickUp
    ended_a_second: float = 0


async def beside_nothing(api: Running, worker: Running) -> Seen:
    """Measure while there is nothing else to do."""
    return Seen(await picked_up(api, worker))


async def beside(api: Running, worker: Running, batch: bytes) -> Seen:
    """Measure while the batch is answered, then cancel what is left of it."""
    await asyncio.to_thread(upload, api, "NDJSON", batch)
    await asyncio.sleep(UNDER_WAY_SECONDS)
    (before, *_) = (await _call(api, "GET", "/batches?limit=1"))["items"]
    began = time.monotonic()
    pick_up = await picked_up(api, worker)
    after = await _call(api, "GET", f"/batches/{before['id']}")
    seconds = time.monotonic() - began
    ended = after["counts"]["succeeded"] - before["counts"]["succeeded"]
    assert ended, after
    assert after["counts"]["queued"], after
    until = time.monotonic() + LONGEST_SECONDS
    while (await _call(api, "POST", f"/batches/{after['id']}/cancel"))["finished_at"] is None:
        assert time.monotonic() < until
        await asyncio.sleep(LOOK_SECONDS)
    return Seen(pick_up, ended / seconds)


async def _call(api: Running, method: str, path: str) -> Any:
    response = await request(port(api), method, f"/api/v1{path}")
    (line,) = [line async for line in response.lines()]
    response.close()
    return json.loads(line)


async def main(rounds: int) -> None:
    """Compare."""
    with stage() as on:
        api, worker = stamped(on)
        sides = {
            "nothing": partial(beside_nothing, api, worker),
            **{pace: partial(beside, api, worker, body(query)) for pace, query in PACES.items()},
        }
        figures = await interleaved(rounds, sides)
    idle = figures["nothing"]
    table(
        f"From acceptance to a worker's beginning beside a batch of {ITEMS:,}, ms, {rounds} rounds"
        f" (target: p50 at most {MOST_TIMES} times that beside nothing)",
        ["beside", "p50", "p95", "p50 / that beside nothing", "of the batch, runs a second"],
        [
            [
                name,
                Spread.of(each.pick_up.p50 for each in seen),
                Spread.of(each.pick_up.p95 for each in seen),
                Spread.of_ratio([each.pick_up.p50 for each in seen], [each.pick_up.p50 for each in idle]),
                Spread.of(each.ended_a_second for each in seen),
            ]
            for name, seen in figures.items()
        ],
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
