"""Queries that kill whoever answers them: they take nobody with them, and are given up after the third process."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.client import Client
from tests.support.service import Service

RUNS = 300
EVERY_25TH = 25
PACE_SECONDS = 0.1


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_poison_hurts_nobody_else(service: Service) -> None:
    api = service.api()
    service.worker("--processes", "2", WORKER_SLOTS="10")
    async with Client(api.url) as client:
        poison: list[str] = []
        others: list[str] = []
        for number in range(RUNS):
            deadly = number % EVERY_25TH == 0
            run = await client.run(
                "die" if deadly else "0.5 seconds", agent_type="poison" if deadly else "slow", deadline_s=900
            )
            (poison if deadly else others).append(run["id"])
            await asyncio.sleep(PACE_SECONDS)
        ended = [await client.ended(run_id) for run_id in others]
        dead = [await client.ended(run_id) for run_id in poison]

    assert {run["status"] for run in ended} == {"succeeded"}
    assert {(run["error"]["code"], run["attempt"]) for run in dead} == {("worker_crashed", 3)}
