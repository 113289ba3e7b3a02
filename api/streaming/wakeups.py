"""Waiting for news: futures that whoever has news resolves, and one clock for all that have waited in vain."""

from __future__ import annotations

import asyncio
from enum import Enum, auto


class WakeReason(Enum):
    """What a wait was for, seen from its end."""

    FOR_NEWS = auto()
    """Something has come."""
    NO_LONGER = auto()
    """Who waited has gone."""
    IN_VAIN = auto()
    """There were no news for so long."""


class Wakeups:
    """Those that wait for the same news."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[WakeReason], float] = {}

    def wait(self) -> asyncio.Future[WakeReason]:
        """Return a future that resolves at the next update; whoever waits for it may resolve it earlier."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[WakeReason] = loop.create_future()
        self._waiting[waiting] = loop.time()
        return waiting

    def tire(self, before: float) -> None:
        """Have those look who began to wait before that time; forget who waits no longer."""
        for waiting, since in list(self._waiting.items()):
            if since < before or waiting.done():
                del self._waiting[waiting]
                end_wait(waiting, WakeReason.IN_VAIN)

    def wake(self) -> None:
        """Have every follower look."""
        for waiting in self._waiting:
            end_wait(waiting, WakeReason.FOR_NEWS)
        self._waiting.clear()


def end_wait(waiting: asyncio.Future[WakeReason], reason: WakeReason) -> None:
    """End a wait, if it has not ended; the first reason counts."""
    if not waiting.done():
        waiting.set_result(reason)
