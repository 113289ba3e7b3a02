"""What a run has done can be read while it runs and afterwards, page by page, by its owner."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Client
from tests.support.eventually import eventually
from tests.support.service import Service
from tests.support.step_agents import Planned

SERVED = {
    "AGENTS": ",".join(f"{name}=tests.support.step_agents:{name}" for name in ("steps", "forgetful", "named", "quiet"))
}


async def steps_of(client: Client, run_id: str, **params: Any) -> list[dict[str, Any]]:
    """Read all pages of a run's steps."""
    steps: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await client.http.get(f"/runs/{run_id}/steps", params=params | cursor)).json()
        steps += page["items"]
        assert len(page["items"]) <= params.get("limit", 20)
        if page["next_cursor"] is None:
            return steps
        cursor = {"cursor": page["next_cursor"]}


def shown(steps: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Say what each step is: of calls also which, and what they returned."""
    return [(step["kind"], step.get("tool_call_id") and (step["tool_call_id"], step["result"])) for step in steps]


WHOLE: list[tuple[str, Any]] = [
    ("response", None),
    ("tool_call", ("0-0", "done")),
    ("response", None),
    ("tool_call", ("1-0", "done")),
    ("tool_call", ("1-1", "done")),
    ("response", None),
]


@pytest.mark.parametrize("agent", ["steps", "forgetful"])
@pytest.mark.parametrize("in_thread", [True, False])
async def test_steps_are_shown_afterwards_in_pages_of_any_size(
    service: Service, tmp_path: Path, agent: str, *, in_thread: bool
) -> None:
    planned = Planned(tmp_path, [["work"], ["work", "work"]])
    api = service.api(**SERVED)
    service.worker(**SERVED)
    async with Client(api.url) as client:
        target = {"thread_id": await client.thread(agent)} if in_thread else {"agent_type": agent}
        run = await client.run(planned.query, **target)
        await client.ended(run["id"])
        whole = await steps_of(client, run["id"], limit=100)
        in_pages = [await steps_of(client, run["id"], limit=limit) for limit in (1, 2, 5)]

    if agent == "forgetful" and not in_thread:  # Of its messages nothing was stored.
        assert [(step["kind"], step["text"]) for step in whole] == [("response", "3 results. ")]
        return
    assert shown(whole) == WHOLE
    assert [step["index"] for step in whole] == list(range(len(whole)))
    assert {step["attempt"] for step in whole} == {1}
    assert whole[-1]["text"] == "3 results. "
    assert in_pages == [whole] * 3
    times = [step["finished_at"] for step in whole]
    assert None not in [times[1], times[3], times[-1]]
    if agent == "steps":
        assert None not in times
        assert times == sorted(times)


async def test_steps_are_shown_while_the_run_is_under_way_and_over_attempts(service: Service, tmp_path: Path) -> None:
    planned = Planned(tmp_path, [["work"], ["kill_once", "work"]])
    api = service.api(**SERVED)
    service.worker("--processes", "1", LEASE_SECONDS="600", BEAT_SECONDS="1", **SERVED)
    slow = Planned(tmp_path / "slow", [["work"], ["work"]], seconds=4)
    slow.folder.mkdir()
    async with Client(api.url) as client:
        run = await client.run(slow.query, agent_type="steps")
        await asyncio.to_thread(eventually, lambda: bool(slow.ledger.begun("1-0")))
        halfway = await steps_of(client, run["id"])
        assert shown(halfway) == [*WHOLE[:3], ("tool_call", ("1-0", None))]
        assert (halfway[3]["finished_at"], halfway[3]["started_at"] is not None) == (None, True)
        await client.ended(run["id"])

        run = await client.run(planned.query, agent_type="steps")
        assert (await client.ended(run["id"]))["attempt"] == 2
        steps = await steps_of(client, run["id"])

    assert shown(steps)[3] == ("tool_call", ("1-0", "survived"))
    assert {step["attempt"] for step in steps[:3]} == {1}
    assert {steps[3]["attempt"], steps[-1]["attempt"]} == {2}


async def test_an_agent_that_shows_less_shows_less_here(service: Service, tmp_path: Path) -> None:
    planned = Planned(tmp_path, [["work"]])
    api = service.api(**SERVED)
    service.worker(**SERVED)
    async with Client(api.url) as client:
        found: dict[str, list[dict[str, Any]]] = {}
        for agent in ("named", "quiet"):
            run = await client.run(planned.query, agent_type=agent)
            await client.ended(run["id"])
            found[agent] = await steps_of(client, run["id"])

    assert [step["kind"] for step in found["quiet"]] == ["response", "response"]
    assert [step["kind"] for step in found["named"]] == ["response", "tool_call", "response"]
    call = found["named"][1]
    assert (call["tool_name"], call["args"], call["result"]) == ("work", None, None)


async def test_steps_of_a_thread_come_with_its_messages(service: Service, tmp_path: Path) -> None:
    planned = Planned(tmp_path, [["work"]])
    api = service.api(**SERVED)
    service.worker(**SERVED)
    async with Client(api.url) as client, Client(api.url) as stranger:
        thread_id = await client.thread("steps")
        first = await client.run(planned.query, thread_id=thread_id)
        second = await client.run("{no plan", thread_id=thread_id)
        await client.ended(second["id"])
        url = f"/threads/{thread_id}/messages"
        page = (await client.http.get(url, params={"include": "steps"})).json()
        plain = (await client.http.get(url)).json()
        wrong = await client.http.get(url, params={"include": "everything"})
        one = (await client.http.get(url, params={"include": "steps", "limit": 1})).json()
        rest = (await client.http.get(url, params={"include": "steps", "cursor": one["next_cursor"]})).json()
        refused = [
            (await stranger.http.get(path)).status_code
            for path in (f"/runs/{first['id']}/steps", f"{url}?include=steps")
        ]
        of_run = await steps_of(client, first["id"])

    asked, answered, failed = page["items"]
    assert asked["steps"] is None
    assert (answered["steps"], answered["more_steps"]) == (of_run, False)
    assert [kind for kind, _ in shown(of_run)] == ["response", "tool_call", "response"]
    assert (failed["role"], failed["steps"]) == ("user", [])
    assert [sorted(message) for message in plain["items"]] == [
        ["attachments", "content", "created_at", "id", "metadata", "role"] for _ in range(3)
    ]
    assert [*one["items"], *rest["items"]] == page["items"]
    assert wrong.status_code == 422
    assert refused == [404, 404]
