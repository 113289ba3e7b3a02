"""Files that an attempt makes: they are stored for a run that is still this attempt's, and for no other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic_ai.messages import BinaryContent

from agent_relay.shared.settings import Settings
from agent_relay.worker.execution.files import RunFiles
from agent_relay.worker.fetching import Fetcher
from tests.support.stage import Stage


@pytest.mark.parametrize(
    ("meanwhile", "stored"),
    [
        ("SELECT 1", 1),
        ("DELETE FROM runs", 0),
        ("UPDATE runs SET attempt = attempt + 1", 0),
    ],
    ids=["held", "erased", "lost"],
)
async def test_a_file_is_stored_only_for_a_run_that_is_this_attempts(
    stage: Stage, database_url: str, meanwhile: str, stored: int
) -> None:
    async def at_once(call: Callable[[], Awaitable[Any]]) -> Any:
        return await call()

    settings = Settings(database_url=database_url, redis_url="redis://none")
    claimed = await stage.claimed(await stage.query(), await stage.worker())
    files = RunFiles(settings, stage.database, Fetcher(settings), claimed, takes=(), urls="fetch", patiently=at_once)
    await stage.execute(meanwhile)

    await files.made(BinaryContent(b"%PDF-1.7 drawn", media_type="application/pdf"))

    assert len(await stage.execute("SELECT id FROM files")) == stored
    assert len(await stage.execute("SELECT file_id FROM file_uses")) == stored
