"""The operations page's stream: all watchers of a process share a tick, and none waits for another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from agent_relay.api.operations import board as boards
from agent_relay.api.operations.board import MOST_WATCHERS, Board, Watcher
from agent_relay.api.problems import Refused
from agent_relay.shared.tasks import stop
from tests.support.stage import Stage

PATIENCE_SECONDS = 60


class Page:
    """A reader that keeps what it is sent."""

    def __init__(self, board: Board, expires_at_ms: int | None = None) -> None:
        self.watcher = Watcher(board, expires_at_ms)
        self.events: list[tuple[str, Any]] = []
        self.came = asyncio.Event()
        self.task = asyncio.create_task(self.watcher.write(self._take))

    async def _take(self, message: MutableMapping[str, Any]) -> None:
        for event in message["body"].decode().split("\n\n"):
            if event.startswith("event: "):
                name, data = event.split("\n", 1)
                self.events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
                self.came.set()

    async def sees(self, name: str) -> Any:
        """Wait for the next event, and return what the newest of that name holds."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (found := [data for event, data in self.events if event == name]):
                await self.came.wait()
                self.came.clear()
        return found[-1]

    async def leave(self) -> None:
        """Close the page."""
        self.watcher.lose()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.task


@asynccontextmanager
async def looking(board: Board) -> AsyncGenerator[None]:
    """Have the board look."""
    task = asyncio.create_task(board.run())
    try:
        yield
    finally:
        await stop([task])


async def test_a_new_page_is_served_at_once_although_the_next_look_is_far(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(boards, "LONGEST_TICK_SECONDS", 3600)
    monkeypatch.setattr(boards, "SHARE", 1e-9)
    await stage.execute("""INSERT INTO service_minutes VALUES (date_trunc('minute', now()) - interval '2 minutes',
        '{"ended": [["echo", "succeeded", "", 6, 60, null, null]], "picked_up": {}, "queues": [], "streams": 0}')""")
    await stage.query()
    board = Board(stage.database, 15)
    async with looking(board):
        for look in range(3):
            first, second = Page(board), Page(board)
            now = await first.sees("now")
            assert now["queues"][0][:4] == ["default", "interactive", "queued", 1]
            plots = await second.sees("history")
            assert 6 in plots["15m"]["ended"]["succeeded"]
            assert (await second.sees("now"))["queues"][0][:4] == now["queues"][0][:4]
            assert board.tick <= 2 * (look + 1)
            await first.leave()
            await second.leave()


async def test_nobody_looks_while_nobody_watches(stage: Stage) -> None:
    board = Board(stage.database, 15)
    async with looking(board):
        await asyncio.sleep(0.2)
        assert board.tick == 0


async def test_without_a_database_the_page_is_told_so() -> None:
    nowhere = create_async_engine("postgresql+psycopg://postgres@127.0.0.1:1/none")
    board = Board(nowhere, 15)
    async with looking(board):
        page = Page(board)
        assert "PostgreSQL does not answer" in (await page.sees("trouble"))["detail"]
        await page.leave()


async def test_pages_of_a_process_are_limited_and_end_with_their_session(stage: Stage) -> None:
    board = Board(stage.database, 15)
    expired = Page(board, expires_at_ms=1)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await expired.task
    watchers = [Watcher(board, None) for _ in range(MOST_WATCHERS)]
    with pytest.raises(Refused) as refused:
        Watcher(board, None)
    assert refused.value.status == 503
    assert len(watchers) == MOST_WATCHERS
