"""Streams as clients read them: growth, tickets, slow readers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.support.client import Client, ids, names, read_events, rebuilt, texts


@pytest.mark.parametrize("sse", [False, True], ids=["ndjson", "sse"])
@pytest.mark.parametrize("agent_type", ["bank_support", "echo", "unicode", "unicode_form", "nul"])
async def test_deltas_say_the_same_in_fewer_bytes(client: Client, agent_type: str, sse: bool) -> None:
    run = await client.run("What is my balance? 🙂", agent_type=agent_type)
    async with client.following(run["id"], sse=sse, deltas="true") as stream:
        events = [event async for event in stream]

    whole = await client.events(run["id"])
    first = next(event for event in events if event["event"] == "text_delta")
    assert "token" in first
    assert rebuilt(events)[-1] == texts(whole)[-1]
    assert names(events)[-2:] == ["message_complete", "done"]


async def test_deltas_grow_with_the_answer(client: Client) -> None:
    async with client.http.stream(
        "POST", "/agent/stream?deltas=true", json={"query": "What is my balance?", "agent_type": "bank_support"}
    ) as response:
        deltas = [event async for event in read_events(response)]

    said = sum(len(event.get("token", event.get("append", ""))) for event in deltas)
    assert said < 3 * len(rebuilt(deltas)[-1])


async def test_a_ticket_opens_its_stream_without_headers(client: Client) -> None:
    whole = await client.stream("hello", agent_type="echo")
    ticket = (await client.http.post(f"/runs/{whole[0]['run_id']}/stream-ticket")).json()
    url = f"{client.http.base_url.copy_with(path='/')}".rstrip("/") + ticket["url"]

    async with httpx.AsyncClient() as anonymous:
        opened = await anonymous.get(url, headers={"Accept": "text/event-stream"})
        resumed = await anonymous.get(url, headers={"Last-Event-ID": whole[-2]["id"]})

    assert opened.status_code == 200
    assert opened.headers["content-type"].startswith("text/event-stream")
    assert [json.loads(line)["event"] for line in resumed.text.splitlines()] == ["done"]


async def test_a_ticket_opens_nothing_else(client: Client) -> None:
    mine, other = [(await client.run("hello", agent_type="echo"))["id"] for _ in range(2)]
    ticket = (await client.http.post(f"/runs/{mine}/stream-ticket")).json()["url"].partition("?ticket=")[2]
    altered = ticket[:-6] + ("A" if ticket[-6] != "A" else "B") + ticket[-5:]

    async with httpx.AsyncClient(base_url=client.http.base_url) as anonymous:
        refused: list[Any] = [
            await anonymous.get(f"/runs/{other}/stream", params={"ticket": ticket}),
            await anonymous.get(f"/runs/{mine}/stream", params={"ticket": altered}),
            await anonymous.get(f"/runs/{mine}/stream", params={"ticket": ""}),
            await anonymous.get(f"/runs/{mine}", params={"ticket": ticket}),
            await anonymous.post(f"/runs/{mine}/cancel", params={"ticket": ticket}),
        ]

    assert [response.status_code for response in refused] == [401] * 5


async def test_streams_are_neither_cached_nor_buffered_on_the_way(client: Client) -> None:
    response = await client.http.post("/agent/stream", json={"query": "x", "agent_type": "echo"})

    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["link"] == f'<{response.headers["content-location"]}/stream>; rel="monitor"'


async def test_followers_of_one_run_see_the_same(client: Client) -> None:
    run = await client.run("1 second", agent_type="slow")

    streams = [await client.events(run["id"], sse=n % 2 == 0) for n in range(2)]

    assert ids(streams[0])[-2:] == ids(streams[1])[-2:]
    assert texts(streams[0])[-1] == texts(streams[1])[-1]
