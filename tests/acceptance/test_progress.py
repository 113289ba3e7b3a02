"""What an agent's tools tell of their work, its provider's tools, and the calls of agents that it asks, in streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.busy_agents import TOTAL
from tests.support.client import Client, Event, ids
from tests.support.service import Service

SERVED = {"AGENTS": "busy=tests.support.busy_agents:busy"}
FOREVER = {"LEASE_SECONDS": "600", "BEAT_SECONDS": "1", **SERVED}


def done(events: list[Event], call: str = "index-0") -> list[int]:
    """Say how far a call said that it was."""
    return [event["data"]["done"] for event in events if event["event"] == "progress" and event["tool_call_id"] == call]


def told(events: list[Event]) -> list[tuple[Any, ...]]:
    """Name the calls and results, and whose they are."""
    return [
        (event["event"], event["tool_call_id"], event.get("native"), event.get("parent_tool_call_id"))
        for event in events
        if event["event"] in {"tool_call", "tool_result"}
    ]


async def test_tools_tell_how_far_they_are_and_whose_they_are(service: Service) -> None:
    api = service.api(**SERVED)
    service.worker(**SERVED)
    async with Client(api.url) as client:
        thread_id = await client.thread("busy")
        run = await client.run("go", thread_id=thread_id)
        live = await client.events(run["id"])
        in_sse = await client.events(run["id"], sse=True)
        middle = [event for event in live if event["event"] == "progress"][TOTAL // 2]
        resumed = await client.events(run["id"], after=middle["id"])
        steps = (await client.http.get(f"/runs/{run['id']}/steps")).json()["items"]
        page = await client.http.get(f"/threads/{thread_id}/messages", params={"include": "steps"})

    assert ids(live) == sorted(set(ids(live)))
    assert done(live) == list(range(TOTAL))
    assert live[[event["event"] for event in live].index("progress")]["data"] == {"done": 0, "total": TOTAL}
    assert done(live, "read-0") == [1]
    searches = [[("tool_call", f"search-{n}", True), ("tool_result", f"search-{n}", True)] for n in range(3)]
    assert told(live) == [
        *((*each, None) for each in searches[0]),
        ("tool_call", "index-0", None, None),
        ("tool_result", "index-0", None, None),
        *((*each, None) for each in searches[1]),
        ("tool_call", "ask-1", None, None),
        *((*each, "ask-1") for each in searches[0]),
        ("tool_call", "read-0", None, "ask-1"),
        ("tool_result", "read-0", None, "ask-1"),
        *((*each, "ask-1") for each in searches[1]),
        ("tool_result", "ask-1", None, None),
        *((*each, None) for each in searches[2]),
    ]
    events = [event for event in live if event["event"] != "text_delta"]
    assert [event for event in in_sse if event["event"] != "text_delta"] == events
    assert [event for event in resumed if event["event"] != "text_delta"] == [
        event for event in events if ids([event]) > ids([middle])
    ]
    assert [(step["kind"], step.get("text")) for step in steps] == [
        ("native_tool", None),
        ("response", "First I search. "),
        ("tool_call", None),
        ("native_tool", None),
        ("response", "First I search. "),
        ("tool_call", None),
        ("native_tool", None),
        ("response", "First I search. Done."),
    ]
    assert page.json()["items"][1]["steps"] == steps


async def test_progress_of_a_call_that_was_lost_is_told_again_with_the_call(service: Service, tmp_path: Path) -> None:
    api = service.api(**FOREVER)
    service.worker("--processes", "1", **FOREVER)
    dying = tmp_path / "die"
    dying.touch()
    async with Client(api.url) as client:
        run = await client.run("go", agent_type="busy", metadata={"die": str(dying)})
        live = await client.events(run["id"])
        late = await client.events(run["id"])
        before = [event for event in live if event["id"].startswith("1-")]
        resumed = await client.events(run["id"], after=before[-2]["id"])

    again = next(event for event in live if event["event"] == "message_started" and event["attempt"] == 2)
    after = live[live.index(again) :]
    assert again["steps_kept"] == 1
    assert done(before) == list(range(TOTAL // 2 + 1))
    assert done(after) == list(range(TOTAL))
    assert told(after)[0] == ("tool_call", "index-0", None, None)
    events = [event for event in live if event["event"] != "text_delta"]
    assert [event for event in late if event["event"] != "text_delta"] == events
    assert [event["id"] for event in resumed if event["event"] != "text_delta"] == [
        event["id"] for event in events if ids([event]) > ids([before[-2]])
    ]
