"""How many tokens a worker carries from a model's HTTP stream into the log in a second of CPU, and the usual design."""

from __future__ import annotations

import asyncio
import subprocess

import uvloop

from benchmarks.client import post_run, request
from benchmarks.processes import cpu_seconds, heard, module, tell
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import port, stage
from tests.support.service import Running

STREAMS = 20
TOKENS = 400
PACES = {"80 tokens/s": 80, "unpaced": 0}
TARGET = 1.8


async def worker(api: Running, worker: Running, pace: float) -> float:
    """Have the worker answer, with a follower each; tell its tokens a second of CPU."""
    before = cpu_seconds([worker.process.pid])

    async def run() -> None:
        run_id = await post_run(port(api), f"{TOKENS} at {pace}", "provided")
        response = await request(port(api), "GET", f"/api/v1/runs/{run_id}/stream?deltas=true")
        events = [event["event"] async for event in response.events()]
        assert events[-2:] == ["message_complete", "done"], events[-2:]
        response.close()

    await asyncio.gather(*(run() for _ in range(STREAMS)))
    return STREAMS * TOKENS / (cpu_seconds([worker.process.pid]) - before)


async def usual(process: subprocess.Popen[str], pace: float) -> float:
    """Have the usual design answer."""
    before = cpu_seconds([process.pid])
    tell(process, f"{STREAMS} {TOKENS} at {pace}")
    await asyncio.to_thread(heard, process)
    return STREAMS * TOKENS / (cpu_seconds([process.pid]) - before)


async def main(rounds: int) -> None:
    """Compare."""
    rows: list[list[object]] = []
    with module("provider") as provider:
        url = f"http://127.0.0.1:{heard(provider)}/v1"
        with stage(OPENAI_BASE_URL=url) as on, module("usual", OPENAI_BASE_URL=url) as rival:
            heard(rival)
            api, ours = on.service.api(), on.service.worker()
            for name, pace in PACES.items():
                figures = await interleaved(
                    rounds, {"usual": lambda p=pace: usual(rival, p), "ours": lambda p=pace: worker(api, ours, p)}
                )
                ratio = Spread.of_ratio(figures["ours"], figures["usual"])
                rows.append([name, Spread.of(figures["usual"]), Spread.of(figures["ours"]), ratio, f">= {TARGET}"])
    table(
        f"Tokens a second of CPU, {STREAMS} streams of {TOKENS} tokens, {rounds} rounds",
        ["pace", "usual", "agent-relay's worker", "ratio", "target"],
        rows,
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
