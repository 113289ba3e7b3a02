"""Waiting in tests: never for a time, always for something to be so, within a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

DEADLINE_SECONDS = 60

Seen = TypeVar("Seen")


def eventually(look: Callable[[], Seen]) -> Seen:
    """Look until something is seen, and return it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (seen := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return seen


async def soon(look: Callable[[], Awaitable[Seen]]) -> Seen:
    """Do the same without keeping the loop."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (seen := await look()):  # noqa: ASYNC110  (it may be another process)
            await asyncio.sleep(0.02)
    return seen
