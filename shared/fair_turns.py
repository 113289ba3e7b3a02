"""Connections go round among the callers that wait for one: tenants take turns, and within each its users.

Without that, a caller that asks for a hundred things at once stands before all others a hundred times.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar
from typing import Generic, TypeVar

Item = TypeVar("Item")

CALLER: ContextVar[tuple[str, str]] = ContextVar("caller", default=("", ""))
"""The tenant and the user of the current request; empty for work of the process itself."""


class FairTurns(Generic[Item]):
    """Free items, and the callers that wait for one. An item goes to the next caller in turn: a new one waits."""

    def __init__(self) -> None:
        self.free = deque[Item]()
        self._waiting: dict[str, dict[str, deque[asyncio.Future[Item]]]] = {}
        """By tenant and user; of each, the next stands first."""

    def give(self, item: Item) -> None:
        """Hand an item to the next in turn, or keep it."""
        if (waiter := self._next()) is None:
            self.free.append(item)
        else:
            waiter.set_result(item)

    async def take(self, seconds: float | None) -> Item:
        """Take an item, in turn where none is free.

        Raises:
            TimeoutError: it took longer than `seconds`.
        """
        if self.free:
            return self.free.popleft()
        tenant, user = CALLER.get()
        waiter: asyncio.Future[Item] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, {}).setdefault(user, deque()).append(waiter)
        try:
            async with asyncio.timeout(seconds):
                return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():  # It was given one in the same moment.
                self.give(waiter.result())
            raise

    def _next(self) -> asyncio.Future[Item] | None:
        """Take out the next caller: of the tenant whose last turn is longest ago, the user whose last is."""
        while self._waiting:
            tenant, users = next(iter(self._waiting.items()))
            user, line = next(iter(users.items()))
            waiter = line.popleft()
            del self._waiting[tenant], users[user]
            if line:
                users[user] = line
            if users:
                self._waiting[tenant] = users
            if not waiter.done():
                return waiter
        return None
