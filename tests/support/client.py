"""A client of the API, as a user would write one."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Self
from uuid import uuid4

import httpx

from tests.support.service import KEYS

Event = dict[str, Any]

TERMINAL = {"succeeded", "failed", "cancelled"}


class Client:
    """One user of one tenant."""

    def __init__(self, url: str, tenant: str = "acme", user_id: str | None = None) -> None:
        self.user_id = user_id or str(uuid4())
        self.http = httpx.AsyncClient(
            base_url=f"{url}/api/v1",
            headers={"X-API-Key": KEYS[tenant], "X-User-ID": self.user_id},
            timeout=60,
            verify=False,  # It is plain HTTP, and to load the certificates takes longer than most tests.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def thread(self, agent_type: str = "bank_support", **metadata: Any) -> str:
        """Begin a thread; returns its id."""
        response = await self.http.post("/threads", json={"agent_type": agent_type, "metadata": metadata})
        assert response.status_code == httpx.codes.CREATED, response.text
        return response.json()["id"]

    async def ask(self, query: str, **target: Any) -> httpx.Response:
        """Ask and wait for the answer."""
        return await self.http.post("/agent/query", json={"query": query, **target})

    async def run(self, query: str, **target: Any) -> dict[str, Any]:
        """Post a run; returns it as accepted."""
        response = await self.http.post("/runs", json={"query": query, **target})
        assert response.status_code == httpx.codes.ACCEPTED, response.text
        return response.json()

    async def read(self, run_id: str, wait: float = 0) -> dict[str, Any]:
        """Read a run."""
        response = await self.http.get(f"/runs/{run_id}", params={"wait": wait} if wait else {})
        assert response.status_code == httpx.codes.OK, response.text
        return response.json()

    async def ended(self, run_id: str) -> dict[str, Any]:
        """Wait for a run's end."""
        while (run := await self.read(run_id, wait=30))["status"] not in TERMINAL:
            pass
        return run

    async def messages(self, thread_id: str) -> list[dict[str, Any]]:
        """Read the last messages of a thread."""
        return (await self.http.get(f"/threads/{thread_id}")).json()["messages"]

    @asynccontextmanager
    async def asking(self, query: str, *, sse: bool = False, **target: Any) -> AsyncGenerator[AsyncGenerator[Event]]:
        """Ask, and stream the answer."""
        async with self.http.stream(
            "POST", "/agent/stream", json={"query": query, **target}, headers=_accept(sse=sse)
        ) as response:
            assert response.status_code == httpx.codes.OK, (await response.aread()).decode()
            yield read_events(response)

    @asynccontextmanager
    async def following(
        self, run_id: str, *, sse: bool = False, after: str | None = None, **parameters: Any
    ) -> AsyncGenerator[AsyncGenerator[Event]]:
        """Follow a run."""
        async with self.http.stream(
            "GET",
            f"/runs/{run_id}/stream",
            params=parameters,
            headers=_accept(sse=sse) | ({"Last-Event-ID": after} if after else {}),
        ) as response:
            assert response.status_code in {httpx.codes.OK, httpx.codes.NO_CONTENT}, (await response.aread()).decode()
            yield read_events(response)

    async def events(self, run_id: str, **options: Any) -> list[Event]:
        """Follow a run until its stream closes."""
        async with self.following(run_id, **options) as stream:
            return [event async for event in stream]

    async def stream(self, query: str, **options: Any) -> list[Event]:
        """Ask, and collect the whole stream."""
        async with self.asking(query, **options) as stream:
            return [event async for event in stream]


def _accept(*, sse: bool) -> dict[str, str]:
    return {"Accept": "text/event-stream" if sse else "application/x-ndjson"}


async def read_events(response: httpx.Response) -> AsyncGenerator[Event]:
    """Read the events of a stream, in either framing; of SSE, the framing must agree with the object."""
    sse = response.headers.get("content-type", "").startswith("text/event-stream")
    frame: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not sse:
            if line:
                yield json.loads(line)
        elif line and not line.startswith(":"):
            name, _, value = line.partition(":")
            frame[name] = value.removeprefix(" ")
        elif not line and "data" in frame:
            event = json.loads(frame["data"])
            assert frame["id"] == event["id"]
            assert frame["event"] == ("run_failed" if event["event"] == "error" else event["event"])
            frame = {}
            yield event


def names(events: list[Event]) -> list[str]:
    """Name the events in order, texts in a row once."""
    told: list[str] = []
    for event in events:
        if event["event"] != "text_delta" or told[-1:] != ["text_delta"]:
            told.append(event["event"])
    return told


def ids(events: list[Event]) -> list[tuple[int, int]]:
    """Read the ids as what they are inside."""
    return [(int(event["id"].split("-")[0]), int(event["id"].split("-")[1])) for event in events]


def texts(events: list[Event]) -> list[str]:
    """Collect the texts."""
    return [event["token"] for event in events if event["event"] == "text_delta"]


def rebuilt(events: list[Event]) -> list[str]:
    """Put together the texts of one connection, as a client would."""
    return list(texts_by_id(events).values())


def texts_by_id(events: list[Event]) -> dict[str, str]:
    """Put together the texts of one connection; the first, and those of a new attempt or after a gap, are whole."""
    text: str | None = None
    seen: dict[str, str] = {}
    for event in events:
        if event["event"] in {"message_started", "gap"}:
            text = None
        if event["event"] != "text_delta":
            continue
        if "token" in event:
            text = event["token"]
        else:
            assert text is not None
            assert text[len(text) - event["drop"] :].isascii()
            text = text[: len(text) - event["drop"]] + event["append"]
        seen[event["id"]] = str(text)
    return seen
