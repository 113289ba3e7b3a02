"""Turns of the event loop: received bytes are processed for a few connections at a time, so that no turn gets long.

A thousand connections may send something at once. If all of it were parsed in one turn, and each waiting request woken
in the next, all other requests would wait for all of them, once for each step.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

AT_ONCE = 16
"""Each takes half a millisecond at most, with the tasks that it wakes."""


class Turns:
    """A queue of things that happened to connections: first in, first out, `at_once` of them a turn of the loop."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._waiting: deque[Callable[[], None]] = deque()
        self._taken = 0
        """In this turn."""

    def take(self) -> bool:
        """Take a place in this turn; False where there is none left: see `later`."""
        if self._taken >= self._at_once:
            return False
        self._count()
        return True

    def later(self, callback: Callable[[], None]) -> None:
        """Call it in one of the next turns, after all that wait already: those have the first places of a turn.

        It must not raise.
        """
        self._waiting.append(callback)

    def _count(self) -> None:
        if not self._taken:
            asyncio.get_running_loop().call_soon(self._next)
        self._taken += 1

    def _next(self) -> None:
        self._taken = 0
        for _ in range(min(len(self._waiting), self._at_once)):
            self._count()
            self._waiting.popleft()()
