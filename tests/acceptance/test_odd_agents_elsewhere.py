"""Odd agents in a batch, and in a process of their own: each run ends once, and those beside them go on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg

from tests.acceptance.test_batches import outcome, submit
from tests.acceptance.test_odd_messages import GAP_MS, Bystander, recipe
from tests.support.client import Client, names
from tests.support.odd_agents import HALF, OBJECTS, PARTS
from tests.support.service import Service

ODD = {name: f"tests.support.odd_agents:{name}" for name in ("odd", "large", "bystander")} | {
    "poison": "tests.support.agents:poison",
    "raises_nul": "tests.support.odd_agents:raises_nul",
    "panics": "tests.support.odd_agents:panics",
    "exits_as_text": "tests.support.odd_agents:exits_as_text",
    "factory_rejects": "tests.support.odd_agents:factory_rejects",
    "rejecting_instructions": "tests.support.odd_agents:rejecting_instructions",
    "metadata_exits": "tests.support.odd_agents:metadata_exits",
    "half_emoji": "tests.support.odd_agents:half_emoji",
}
AGENTS = {"AGENTS": ",".join(f"{name}={path}" for name, path in ODD.items())}
LARGE = {
    "metadata": "succeeded",
    "rows": "succeeded",
    "generator_in_an_object": "succeeded",
    "too_many_rows": "failed",
    "endless_in_slots": "failed",
    "shared": "failed",
}
USER = "11111111-1111-4111-8111-111111111111"
IN_QUARANTINE = {
    "raises_nul": ("failed", "output_invalid"),
    "panics": ("failed", "agent_error"),
    "exits_as_text": ("failed", "agent_error"),
    "factory_rejects": ("failed", "agent_error"),
    "rejecting_instructions": ("failed", "agent_error"),
    "metadata_exits": ("succeeded", None),
    "half_emoji": ("succeeded", None),
}
WITHOUT_A_STEP = {"factory_rejects", "rejecting_instructions", "half_emoji"}
"""Of these no answer of a model is kept that calls tools, and a kept one has the crashes counted anew."""


def rows(service: Service) -> list[tuple[Any, ...]]:
    """Read how often each run was begun, and how often a process died under it."""
    with psycopg.connect(service.database_url) as connection:
        return connection.execute("SELECT id::text, status, attempt, crashes FROM runs").fetchall()


async def in_batches(url: str, batches: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Submit batches, and return the results of each by the queries."""
    async with Client(url) as client:
        submitted = [
            await submit(client, [{"custom_id": str(n), "query": query} for n, query in enumerate(queries)], agent_type)
            for agent_type, queries in batches.items()
        ]
        ends = await asyncio.gather(*(outcome(client, batch["id"]) for batch in submitted))
    return {
        agent_type: {query: found[str(n)] for n, query in enumerate(batches[agent_type])}
        for agent_type, found in zip(batches, ends, strict=True)
    }


def test_odd_runs_of_a_batch_end_once_and_are_counted_once(service: Service, tmp_path: Path) -> None:
    service.worker(**AGENTS)
    api = service.api()
    recipes = [recipe(part, HALF, "object", "metadata") for part in PARTS]
    recipes += [recipe("TextPart", "x", thing, "content") for thing in OBJECTS]
    batches = {
        "odd": [*recipes, recipe("error", "a\0b", "plain", "content")],
        "large": [*LARGE],
        "raises_nul": ["one", "two"],
        "panics": ["one", "two"],
    }
    with Bystander(api.url, tmp_path / "word") as bystander:
        found = asyncio.run(in_batches(api.url, batches))
        bystander.goes_on()

    assert bystander.last == "done"
    assert bystander.longest_gap_ms < GAP_MS
    assert {found["odd"][query]["status"] for query in recipes[: len(PARTS)]} == {"succeeded"}
    assert found["odd"][batches["odd"][-1]]["error"]["code"] == "output_invalid"
    assert {name: line["status"] for name, line in found["large"].items()} == LARGE
    assert {line["error"]["code"] for line in found["raises_nul"].values()} == {"output_invalid"}
    assert {line["error"]["code"] for line in found["panics"].values()} == {"agent_error"}
    assert {(attempt, crashes) for _, _, attempt, crashes in rows(service)} == {(1, 0)}


def test_odd_runs_in_quarantine_end_once(service: Service, tmp_path: Path) -> None:
    api = service.api()
    service.worker(**AGENTS).kill()  # It has registered its agents.

    async def asked() -> dict[str, str]:
        async with Client(api.url, user_id=USER) as client:
            runs = {name: (await client.run("hello", agent_type=name))["id"] for name in IN_QUARANTINE}
            runs |= {name: (await client.run(name, agent_type="large"))["id"] for name in LARGE}
            return runs | {"poison": (await client.run("die", agent_type="poison"))["id"]}

    runs = asyncio.run(asked())
    with psycopg.connect(service.database_url, autocommit=True) as connection:
        connection.execute("UPDATE runs SET crashes = 1")
    service.worker(**AGENTS)

    async def ended() -> dict[str, tuple[dict[str, Any], list[str]]]:
        async with Client(api.url, user_id=USER) as client:
            return {
                name: (await client.ended(run_id), names(await client.events(run_id))) for name, run_id in runs.items()
            }

    with Bystander(api.url, tmp_path / "word") as bystander:
        ends = asyncio.run(ended())
        bystander.goes_on()

    assert bystander.last == "done"
    assert bystander.longest_gap_ms < GAP_MS
    expected: dict[str, tuple[str, str | None]] = dict(IN_QUARANTINE)
    expected |= {name: (status, "agent_error" if status == "failed" else None) for name, status in LARGE.items()}
    expected["poison"] = ("failed", "worker_crashed")
    assert {name: (run["status"], (run["error"] or {}).get("code")) for name, (run, _) in ends.items()} == expected
    assert {name: events.count("done") for name, (_, events) in ends.items()} == dict.fromkeys(expected, 1)
    begun = {run_id: (attempt, crashes) for run_id, _, attempt, crashes in rows(service)}
    assert begun.pop(runs["poison"]) == (2, 3)
    assert {attempt for attempt, _ in begun.values()} == {1}
    crashes = {name: begun[runs[name]][1] for name in (*IN_QUARANTINE, *LARGE)}
    assert crashes == {name: int(name in WITHOUT_A_STEP) for name in crashes}
