"""What a rolling restart costs long runs: ten tool calls of 2 s each, while one worker after the other is replaced.

Two workers serve the runs. Every 5 s a new worker starts, and the oldest one is told to stop. It finishes the step in
hand and returns the run to the queue. The baselines are the same runs without restarts, and an agent without stored
steps, which begins again from the query at each restart.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import uvloop

from benchmarks.agents import LEDGER
from benchmarks.client import request
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import Stage, port, stage
from tests.support.service import Running

CALLS, SECONDS_A_CALL = 10, 2.0
RUNS = 8
RESTART_EVERY_SECONDS = 5.0
DRAIN_SECONDS = 3.0
"""Longer than a step, shorter than a run."""
DEADLINE_SECONDS = 60.0
TARGET = 1.1
KEPT, NOT_KEPT = "steps", "forgetful"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the runs of a round."""

    answered: int
    seconds: float
    """Until the last of them ended."""
    calls: int
    """How many calls of tools began."""
    twice: int
    """How many of them had begun before."""
    restarts: int


async def outcome(on: Stage, api: Running, folder: str, agent_type: str, *, rolls: bool) -> Outcome:
    """Have runs answered, all at once; with `rolls`, workers are replaced until the last one has ended."""
    ledger = f"{folder}/{uuid4()}"
    environment = {"WORKER_SLOTS": str(RUNS), "DRAIN_SECONDS": str(DRAIN_SECONDS), LEDGER: ledger}
    workers = [await asyncio.to_thread(on.service.worker, **environment) for _ in range(2)]
    restarts = 0

    async def roll() -> None:
        nonlocal restarts
        while True:
            await asyncio.sleep(RESTART_EVERY_SECONDS)
            workers.append(await asyncio.to_thread(on.service.worker, **environment))
            await asyncio.to_thread(workers.pop(0).terminate, 60)
            restarts += 1

    query = {
        "query": f"{CALLS} of {SECONDS_A_CALL:g}",
        "agent_type": agent_type,
        "deadline_s": DEADLINE_SECONDS,
    }
    began = time.perf_counter()
    rolling = asyncio.create_task(roll()) if rolls else None
    answered = sum(await asyncio.gather(*(_is_answered(api, query) for _ in range(RUNS))))
    seconds = time.perf_counter() - began
    if rolling is not None:
        rolling.cancel()
        await asyncio.wait([rolling])
    for worker in workers:
        await asyncio.to_thread(worker.terminate, 60)
    calls = Counter((await asyncio.to_thread(Path(ledger).read_text)).splitlines())
    return Outcome(answered, seconds, calls.total(), calls.total() - len(calls), restarts)


async def _is_answered(api: Running, query: dict[str, str | float]) -> bool:
    """Ask, and follow the run to its end."""
    response = await request(port(api), "POST", "/api/v1/agent/stream", query)
    events = [event async for event in response.events()]
    response.close()
    assert events[-1]["event"] == "done", events[-1]
    return events[-1]["status"] == "succeeded"


async def main(rounds: int) -> None:
    """Compare."""
    with TemporaryDirectory() as folder, stage() as on:
        on.service.worker().terminate()  # It has registered the agents.
        api = on.service.api()
        sides = {
            "steps stored, no restarts": partial(outcome, on, api, folder, KEPT, rolls=False),
            "steps stored, rolling restart": partial(outcome, on, api, folder, KEPT, rolls=True),
            "not stored, rolling restart": partial(outcome, on, api, folder, NOT_KEPT, rolls=True),
        }
        figures = await interleaved(rounds, sides)
    undisturbed = [each.seconds for each in figures["steps stored, no restarts"]]
    table(
        f"{RUNS} runs of {CALLS} calls of {SECONDS_A_CALL:g} s, a restart every {RESTART_EVERY_SECONDS:g} s,"
        f" {rounds} rounds; deadline {DEADLINE_SECONDS:g} s",
        ["", f"answered of {RUNS}", "s", "of undisturbed", "calls", "called twice", "restarts", "target"],
        [
            [
                name,
                Spread.of(each.answered for each in outcomes),
                Spread.of(each.seconds for each in outcomes),
                Spread.of_ratio([each.seconds for each in outcomes], undisturbed),
                Spread.of(each.calls for each in outcomes),
                Spread.of(each.twice for each in outcomes),
                Spread.of(each.restarts for each in outcomes),
                f"<= {TARGET} of undisturbed, none twice" if name == "steps stored, rolling restart" else "",
            ]
            for name, outcomes in figures.items()
        ],
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
