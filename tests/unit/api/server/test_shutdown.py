"""A process that stops before it could answer refuses for now."""

from __future__ import annotations

import asyncio

import httpx
from starlette.types import Receive, Scope, Send

from agent_relay.api.server.shutdown import CutShort
from tests.support.problems import problem_of


async def test_a_call_that_is_cut_short_is_refused_for_now() -> None:
    answering: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()

    async def endless(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await asyncio.Event().wait()

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.create_task(CutShort(endless)(scope, receive, send))
        answering.put_nowait(task)
        await task

    async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://api") as client:
        calling = asyncio.create_task(client.get("/api/v1/runs"))
        task = await answering.get()
        await asyncio.sleep(0)  # It has begun.
        task.cancel()
        response = await calling

    problem_of(response, 503, "service_unavailable")
    assert int(response.headers["Retry-After"]) > 0
