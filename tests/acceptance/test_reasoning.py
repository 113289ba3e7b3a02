"""A model that thinks is seen to: in streams of both framings, after any cursor, over attempts, on a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.client import Client, Event, ids
from tests.support.command import Terminal
from tests.support.service import Service
from tests.support.thinking_agents import Thinking

SERVED = {
    "AGENTS": ",".join(f"{name}=tests.support.thinking_agents:{name}" for name in ("thinks", "secretive", "open_only"))
}
FOREVER = {"LEASE_SECONDS": "600", "BEAT_SECONDS": "1", **SERVED}


def thought(events: Iterable[Event]) -> list[dict[int, str]]:
    """Say what a client holds of the reasoning after each event that changes it, as the documentation has it do."""
    parts: dict[int, str] = {}
    newest: int | None = None
    seen: list[dict[int, str]] = []
    for event in events:
        if event["event"] == "message_started" and event["reason"] != "answered":
            parts = {part: text for part, text in parts.items() if part <= event.get("reasoning_kept", 0)}
        elif event["event"] == "reasoning_delta":
            if "token" in event:
                parts[event["part"]] = event["token"]
            else:
                text = parts[event["part"]]
                assert newest == event["part"]
                assert text[len(text) - event["drop"] :].isascii()
                parts[event["part"]] = text[: len(text) - event["drop"]] + event["append"]
            newest = event["part"]
        elif event["event"] not in {"message_started", "gap"}:
            continue
        if event["event"] in {"message_started", "gap"}:
            newest = None
        seen.append(dict(parts))
    return seen


@pytest.mark.parametrize("sse", [False, True])
@pytest.mark.parametrize("deltas", [False, True])
async def test_a_model_that_thinks_is_alive_before_it_answers(
    service: Service, tmp_path: Path, *, sse: bool, deltas: bool
) -> None:
    api = service.api(**SERVED)
    service.worker(**SERVED)
    plan = Thinking(tmp_path, calls=1, thoughts=60)
    async with Client(api.url) as client:
        run = await client.run(plan.query, thread_id=await client.thread("thinks"))
        live = await client.events(run["id"], sse=sse, deltas=deltas)
        late = await client.events(run["id"], sse=sse, deltas=deltas)
        steps = (await client.http.get(f"/runs/{run['id']}/steps")).json()["items"]
        resumed = [await client.events(run["id"], sse=sse, deltas=deltas, after=event["id"]) for event in live[::7]]

    assert ids(live) == sorted(set(ids(live)))
    kinds = [event["event"] for event in live]
    assert kinds[:2] == ["message_created", "message_started"]
    assert kinds[2 : kinds.index("tool_call")].count("reasoning_delta") > 5
    first_text = kinds.index("text_delta")
    assert kinds[kinds.index("tool_result") : first_text].count("reasoning_delta") > 5
    states = thought(live)
    assert states[-1] == plan.parts
    for before, after in pairwise(states):
        assert all(after[part].startswith(text) for part, text in before.items())
    assert any("append" in event for event in live if event["event"] == "reasoning_delta") == deltas

    assert [event["event"] for event in late] == [
        "message_created",
        "message_started",
        "reasoning_delta",
        "tool_call",
        "tool_result",
        "reasoning_delta",
        "text_delta",
        "message_complete",
        "done",
    ]
    assert thought(late)[-1] == plan.parts
    for event, rest in zip(live[::7], resumed, strict=True):
        newest = [later for later in late if ids([later]) > ids([event])]
        assert [each["id"] for each in rest] == [each["id"] for each in newest]
        assert all("token" in each for each in rest if each["event"] == "reasoning_delta")
    assert [step["kind"] for step in steps] == ["reasoning", "response", "tool_call", "reasoning", "response"]


async def test_reasoning_of_finished_steps_is_kept_over_attempts_and_that_of_the_step_in_hand_is_void(
    service: Service, tmp_path: Path
) -> None:
    api = service.api(**FOREVER)
    service.worker("--processes", "1", **FOREVER)
    plan = Thinking(tmp_path, calls=1)
    plan.dying.touch()
    async with Client(api.url) as client:
        thread_id = await client.thread("thinks")
        run = await client.run(plan.query, thread_id=thread_id)
        live = await client.events(run["id"], deltas=True)
        void = [event["id"] for event in live if event["event"] == "reasoning_delta" and event["id"].startswith("1-")]
        late = await client.events(run["id"])
        resumed = await client.events(run["id"], after=void[-1])

    again = next(event for event in live if event["event"] == "message_started" and event["attempt"] == 2)
    assert (again["reason"], again["steps_kept"], again["reasoning_kept"]) == ("worker_lost", 2, 1)
    before = thought(live[: live.index(again)])[-1]
    assert before[1] == plan.parts[1]
    assert plan.parts[2].startswith(before[2])
    assert before[2] != plan.parts[2]
    assert thought(live[: live.index(again) + 1])[-1] == {1: plan.parts[1]}
    assert thought(live)[-1] == thought(late)[-1] == plan.parts
    assert [event["event"] for event in late].count("reasoning_delta") == 2
    assert thought(resumed)[-1] == {2: plan.parts[2]}
    assert resumed[0] == again


@pytest.mark.parametrize(("agent", "shown"), [("thinks", True), ("open_only", True), ("secretive", False)])
async def test_an_agent_may_keep_what_its_model_thinks_to_itself(
    service: Service, tmp_path: Path, agent: str, *, shown: bool
) -> None:
    api = service.api(**SERVED)
    service.worker(**SERVED)
    plan = Thinking(tmp_path, thoughts=5)
    async with Client(api.url) as client:
        run = await client.run(plan.query, agent_type=agent)
        events = await client.events(run["id"])
        thread_id = await client.thread(agent)
        in_thread = await client.run(plan.query, thread_id=thread_id)
        await client.ended(in_thread["id"])
        steps = (await client.http.get(f"/runs/{in_thread['id']}/steps")).json()["items"]

    assert any(event["event"] == "reasoning_delta" for event in events) == shown
    assert [step["kind"] for step in steps] == [*(["reasoning"] if shown else []), "response"]


async def test_runs_of_batches_tell_no_reasoning_and_a_long_one_is_cut(service: Service, tmp_path: Path) -> None:
    served = SERVED | {"REASONING_EVENT_BYTES": "10"}
    api = service.api(**served)
    service.worker(**served)
    plan = Thinking(tmp_path, thoughts=9)
    async with Client(api.url) as client:
        items = [{"custom_id": "only", "query": plan.query}]
        batch = (await client.http.post("/batches", json={"agent_type": "thinks", "items": items})).json()
        (of_batch,) = (await client.http.get("/runs", params={"batch_id": batch["id"]})).json()["items"]
        told = await client.events(of_batch["id"])
        run = await client.run(plan.query, agent_type="thinks")
        cut = await client.events(run["id"], deltas=True)

    assert "reasoning_delta" not in [event["event"] for event in told]
    assert thought(cut)[-1] == {1: "0.0 0.1 0.… (36 bytes)"}
    assert len(thought(cut)) > 3


async def test_a_terminal_shows_that_the_model_thinks(service: Service, tmp_path: Path) -> None:
    api = service.api(**SERVED)
    service.worker(**SERVED)
    plan = Thinking(tmp_path, thoughts=30)
    terminal = Terminal(api.url, str(uuid4()), tmp_path)
    shown = await asyncio.to_thread(terminal.show, "ask", "--agent", "thinks", plan.query)

    assert "… thinking" in shown
    assert "Thinking… 0.0" in shown
    assert shown.rstrip().endswith("It is so.")
