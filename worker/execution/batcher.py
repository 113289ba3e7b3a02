"""Group commit: requests of many runs to the database in one moment are one transaction.

No request waits for a group to fill: a group is the requests of one turn of the event loop, and those made while the
group before was under way. So an idle worker is as quick as ever, and a busy one makes fewer transactions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from typing import Generic, TypeVar
from uuid import UUID

from agent_relay.shared.database import is_away

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")

HELD_UP_SECONDS = 0.05
"""A transaction that takes longer (it waits for a lock) does not block the next batch."""
MOST = 100
"""The size limit of a transaction, so that none grows long."""


class Batcher(Generic[Asked, Answered]):
    """Batches concurrent calls into one transaction; retries the items that it skipped one by one."""

    def __init__(
        self,
        alone: Callable[[Asked], Awaitable[Answered]],
        together: Callable[[Sequence[Asked]], Awaitable[Mapping[UUID, Answered]]],
        id_of: Callable[[Asked], UUID],
    ) -> None:
        self._alone = alone
        self._together = together
        self._id_of = id_of
        self._gathered: list[tuple[Asked, asyncio.Future[tuple[Answered] | None]]] = []
        self._under_way: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()
        """That one, and those that were held up."""
        self._apart: set[UUID] = set()
        """Whose group lost its connection, perhaps by one of them: until that has worked, each is asked alone."""

    async def ask(self, asked: Asked) -> Answered:
        """Ask, and raise what asking alone raises; where the database was away, asking again is left to the caller."""
        if (asked_id := self._id_of(asked)) in self._apart:
            answer = await self._alone(asked)
            self._apart.discard(asked_id)
            return answer
        future: asyncio.Future[tuple[Answered] | None] = asyncio.get_running_loop().create_future()
        if not self._gathered:  # Whoever else asks in this turn of the loop, goes with it.
            asyncio.get_running_loop().call_soon(self._go_on)
        self._gathered.append((asked, future))
        answered = await future
        return await self._alone(asked) if answered is None else answered[0]

    def _go_on(self) -> None:
        if self._under_way is not None or not self._gathered:
            return
        group, self._gathered = self._gathered[:MOST], self._gathered[MOST:]
        # In no context: it is for all of them, not for the run that asked first.
        self._under_way = task = asyncio.create_task(self._ask(group), context=Context())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        task.add_done_callback(self._over)
        asyncio.get_running_loop().call_later(HELD_UP_SECONDS, self._over, task)

    def _over(self, task: asyncio.Task[None]) -> None:
        if self._under_way is task:
            self._under_way = None
            self._go_on()

    async def _ask(self, group: list[tuple[Asked, asyncio.Future[tuple[Answered] | None]]]) -> None:
        try:
            if len(group) == 1:
                answers = [(await self._alone(group[0][0]),)]
            else:
                found = await self._together([asked for asked, _ in group])
                ids = [self._id_of(asked) for asked, _ in group]
                answers = [(found[asked_id],) if asked_id in found else None for asked_id in ids]
        except Exception as error:  # noqa: BLE001  (it is raised to who asked)
            spoilt = len(group) > 1 and not is_away(error)  # By one member: alone, each gets its own result.
            if len(group) > 1 and not spoilt:
                self._apart.update(self._id_of(asked) for asked, future in group if not future.done())
            for _, future in group:
                if not future.done():
                    future.set_result(None) if spoilt else future.set_exception(error)
            return
        for (_, future), answered in zip(group, answers, strict=True):
            if not future.done():
                future.set_result(answered)
