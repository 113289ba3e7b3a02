"""Waiting for entries: futures that new entries resolve, and one timer for all waits that were too long."""

from __future__ import annotations

import asyncio
from enum import Enum, auto


class WakeReason(Enum):
    """Why a wait ended."""

    FOR_NEWS = auto()
    """There is a new entry."""
    NO_LONGER = auto()
    """The reader has gone."""
    IN_VAIN = auto()
    """There was no entry for this time."""


class Wakeups:
    """The readers that wait for the same entries."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[WakeReason], float] = {}

    def wait(self) -> asyncio.Future[WakeReason]:
        """Return a future that resolves at the next update; the waiting reader may resolve it earlier."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[WakeReason] = loop.create_future()
        self._waiting[waiting] = loop.time()
        return waiting

    def tire(self, before: float) -> None:
        """Wake the readers that began to wait before that time; drop those that wait no longer."""
        for waiting, since in list(self._waiting.items()):
            if since < before or waiting.done():
                del self._waiting[waiting]
                end_wait(waiting, WakeReason.IN_VAIN)

    def wake(self) -> None:
        """Wake every reader."""
        for waiting in self._waiting:
            end_wait(waiting, WakeReason.FOR_NEWS)
        self._waiting.clear()


def end_wait(waiting: asyncio.Future[WakeReason], reason: WakeReason) -> None:
    """End a wait, if it has not ended; the first reason counts."""
    if not waiting.done():
        waiting.set_result(reason)
