"""What 10,000 runs that wait for an approval cost, and how soon a worker has a run whose answer has come.

The waiting runs are a batch. The baseline is the same service before they came: idle CPU, connections to PostgreSQL,
and the pick-up of a run, from the commit of the run or of its answer to the return of its claim.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, LiteralString

import psycopg
import uvloop

from agent_relay.shared.failpoints import Action, Failpoint
from benchmarks.client import post_run, request
from benchmarks.pick_up import LONGEST_PAUSE_SECONDS, SETTLE_SECONDS, PickUp, idle, ours, stamps_of
from benchmarks.processes import allow_many_sockets
from benchmarks.rounds import Spread, asked, table
from benchmarks.stage import AGENTS, Stage, port, stage
from tests.support.service import Running

WAITING = 10_000
ANSWERED = 40
AGENT = "asks"
QUERY = json.dumps([[["pay", {"amount": 1}]]])
STAMPED = (Failpoint.RUN_ACCEPTED, Failpoint.RUN_CLAIMED, Failpoint.ANSWER_STORED)
HELD: LiteralString = """
    SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()),
           (SELECT count(*) FROM runs WHERE status = 'running')
"""


async def fill(api: Running) -> None:
    """Have a batch accepted, and wait until all of its runs wait."""
    items = [{"custom_id": str(number), "query": QUERY} for number in range(WAITING)]
    response = await request(port(api), "POST", "/api/v1/batches", {"agent_type": AGENT, "items": items})
    [batch] = [event async for event in response.events()]
    response.close()
    await _until(api, f"/api/v1/batches/{batch['id']}", lambda batch: batch["counts"]["waiting"] == WAITING)


async def answered(api: Running, worker: Running, run_ids: list[str]) -> PickUp:
    """Answer waiting runs, one at any moment."""
    async for run_id in _now_and_then(run_ids):
        [request_id] = [each["request_id"] for each in (await _get(api, f"/api/v1/runs/{run_id}"))["requests"]]
        body = {"answers": [{"request_id": request_id, "approve": True}]}
        response = await request(port(api), "POST", f"/api/v1/runs/{run_id}/answers", body)
        await response.drain()
        response.close()
    await asyncio.sleep(SETTLE_SECONDS)
    stored, claimed = stamps_of(api, Failpoint.ANSWER_STORED), stamps_of(worker, Failpoint.RUN_CLAIMED)
    return PickUp.of([stored[run_id] for run_id in run_ids], [claimed[run_id] for run_id in run_ids])


async def _asked(api: Running) -> list[str]:
    """Ask for runs that wait for an approval, and wait until they do."""
    run_ids = [await post_run(port(api), QUERY, AGENT) for _ in range(ANSWERED)]
    for run_id in run_ids:
        await _until(api, f"/api/v1/runs/{run_id}", lambda run: run["status"] == "waiting")
    return run_ids


async def _now_and_then(run_ids: list[str]) -> AsyncIterator[str]:
    for run_id in run_ids:
        await asyncio.sleep(random.uniform(0, LONGEST_PAUSE_SECONDS))  # noqa: S311
        yield run_id


async def _until(api: Running, path: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    while True:
        if holds(await _get(api, path)):
            return
        await asyncio.sleep(0.1)


async def _get(api: Running, path: str) -> dict[str, Any]:
    response = await request(port(api), "GET", path)
    [body] = [event async for event in response.events()]
    response.close()
    return body


def _held(on: Stage) -> tuple[int, int]:
    with psycopg.connect(on.postgres.url()) as connection:
        row = connection.execute(HELD).fetchone()
    assert row
    return row[0], row[1]


async def main(rounds: int) -> None:
    """Compare."""
    allow_many_sockets()
    agents = AGENTS | {AGENT: f"tests.support.waiting_agents:{AGENT}"}
    stamps = ",".join(f"{failpoint}={Action.STAMP}" for failpoint in STAMPED)
    with stage(
        AGENTS=",".join(f"{name}={path}" for name, path in agents.items()), MAX_BATCH_UNFINISHED_PER_TENANT="0"
    ) as on:
        api, worker = on.service.api(FAILPOINTS=stamps), on.service.worker(FAILPOINTS=stamps)
        pids = {"worker": worker.process.pid, "API": api.process.pid, "PostgreSQL": on.postgres.process.pid}
        await asyncio.sleep(SETTLE_SECONDS)
        sides: dict[str, list[dict[str, float]]] = {}
        pick_ups: dict[str, list[PickUp]] = {}
        held: dict[str, tuple[int, int]] = {}
        for name in ("none wait", f"{WAITING:,} wait"):
            if name != "none wait":
                await fill(api)
                await asyncio.sleep(10 * SETTLE_SECONDS)
            sides[name] = [await idle(pids) for _ in range(rounds)]
            held[name] = _held(on)
            pick_ups[f"a new run, {name}"] = [await ours(api, worker, ANSWERED) for _ in range(rounds)]
            pick_ups[f"an answered run, {name}"] = [
                await answered(api, worker, await _asked(api)) for _ in range(rounds)
            ]
    table(
        f"With nothing to do, percent of a core, {rounds} rounds",
        ["", *pids, "connections to PostgreSQL", "runs that hold a slot"],
        [
            [name, *(Spread.of(cost[each] for cost in costs) for each in pids), *held[name]]
            for name, costs in sides.items()
        ],
    )
    table(
        f"From the commit of a run or of its answer to a worker's claim, ms, {rounds} rounds of {ANSWERED}",
        ["", "p50", "p95"],
        [
            [name, Spread.of(each.p50 for each in times), Spread.of(each.p95 for each in times)]
            for name, times in pick_ups.items()
        ],
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
