"""A pool of connections to PostgreSQL that go round among the callers that wait for one."""

from __future__ import annotations

from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_only
from sqlalchemy.util.queue import Empty, Full, QueueCommon

from agent_relay.shared.fair_turns import FairTurns


class _FairQueue(QueueCommon[ConnectionPoolEntry]):
    """The free connections, as SQLAlchemy's pool asks for them: in greenlets."""

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:  # noqa: FBT001, FBT002  (as the pool calls it)
        self.maxsize = maxsize
        self.use_lifo = use_lifo
        self._turns = FairTurns[ConnectionPoolEntry]()

    def empty(self) -> bool:
        return not self._turns.free

    def full(self) -> bool:
        return 0 < self.maxsize <= len(self._turns.free)

    def qsize(self) -> int:
        return len(self._turns.free)

    def put_nowait(self, item: ConnectionPoolEntry) -> None:
        if self.full():
            raise Full
        self._turns.give(item)

    def put(self, item: ConnectionPoolEntry, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002, FBT001, FBT002
        self.put_nowait(item)

    def get_nowait(self) -> ConnectionPoolEntry:
        if self.empty():
            raise Empty
        return self._turns.free.popleft()

    def get(self, block: bool = True, timeout: float | None = None) -> ConnectionPoolEntry:  # noqa: FBT001, FBT002
        if not block or not self.empty():
            return self.get_nowait()
        try:
            return await_only(self._turns.take(timeout))
        except TimeoutError:
            raise Empty from None


class FairPool(AsyncAdaptedQueuePool):
    """The pool. A connection that is returned goes to the next caller in turn, past no other."""

    _queue_class = _FairQueue
    _sqla_logger_namespace = "sqlalchemy.pool.FairPool"
    """SQLAlchemy's own lines about it are not ours: they are logged where the application asks for them."""
