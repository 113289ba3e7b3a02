"""The threads that are followed in this process: who has been told all runs of one waits here for the next.

The rows are the truth. A run that is accepted is announced, so that it is told at once; what nobody announces (a run
that starts later, the thread's deletion) is seen by one statement a second for all threads that somebody waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.streaming.wakeups import WakeReason, Wakeups
from agent_relay.shared.away import skip_if_database_away
from agent_relay.shared.database import transact
from agent_relay.shared.database.typed_rows import columns
from agent_relay.shared.errors import NotFound
from agent_relay.shared.event_log import BEFORE_ALL, Id
from agent_relay.shared.redis_names import Names
from agent_relay.shared.rows import RunRow

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
THREADS_AT_ONCE = 1000


class ThreadPlace(NamedTuple):
    """Where an event stands in the stream of a thread: the place of its run in the thread, and its id in that run."""

    seq: int
    id: Id

    def __str__(self) -> str:
        return f"{self.seq}-{self.id}"


BEFORE_ALL_RUNS = ThreadPlace(0, BEFORE_ALL)


@dataclass(frozen=True, slots=True)
class PlaceInThread:
    """What the stream of a thread says of a run in it."""

    seq: int
    run_id: UUID
    after_run_id: UUID | None
    """The run before it in the conversation; None of the first."""


@dataclass(frozen=True, slots=True)
class RunOfThread(RunRow):
    """A run, and its place in its thread."""

    seq: int
    after_run_id: UUID | None

    @property
    def place(self) -> PlaceInThread:
        """What is said of it."""
        return PlaceInThread(self.seq, self.id, self.after_run_id)


_RUN = columns(
    RunOfThread,
    "runs",
    served="CAST(NULL AS boolean)",
    requests="CAST(NULL AS json)",
    after_run_id="""(
        SELECT previous.id FROM runs AS previous
        WHERE previous.thread_id = runs.thread_id AND previous.seq < runs.seq AND NOT previous.rolled_back
        ORDER BY previous.seq DESC LIMIT 1
    )""",
)

_NEXT = text(f"""
    SELECT {_RUN} FROM runs WHERE thread_id = :thread_id AND seq > :seq AND NOT rolled_back ORDER BY seq LIMIT 1
""")  # noqa: S608  (a constant)

_AT = text(f"SELECT {_RUN} FROM runs WHERE thread_id = :thread_id AND seq = :seq")  # noqa: S608  (a constant)

_SEQ = text("SELECT seq FROM runs WHERE thread_id = :thread_id AND id = :run_id")

_IS_THERE = text("SELECT id FROM threads WHERE id = :thread_id AND deleted_at IS NULL")

_NEWS = text("""
    SELECT told.thread_id
    FROM unnest(CAST(:thread_ids AS uuid[]), CAST(:seqs AS bigint[])) AS told (thread_id, seq)
    LEFT JOIN threads ON threads.id = told.thread_id AND deleted_at IS NULL
    WHERE threads.id IS NULL OR EXISTS (
        SELECT FROM runs WHERE runs.thread_id = told.thread_id AND runs.seq > told.seq AND NOT rolled_back
    )
""")
"""The threads that are gone, or have a run after the one that was told last."""


class ThreadFeed(Wakeups):
    """A thread, for those who wait for its next run."""

    __slots__ = ("followers", "thread_id", "told")

    def __init__(self, thread_id: UUID) -> None:
        super().__init__()
        self.thread_id = thread_id
        self.followers = 0
        self.told = 0
        """The place of the run after which somebody waits, the first if they differ."""

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def wait_after(self, seq: int) -> asyncio.Future[WakeReason]:
        """Wait for a run after that place, or for the thread's end."""
        self.told = min(self.told, seq) if self.is_awaited else seq
        return self.wait()


class Threads:
    """All threads that are followed in this process."""

    def __init__(
        self, database: AsyncEngine, names: Names, want: Callable[[str], None], drop: Callable[[str], None]
    ) -> None:
        """`want` subscribes to a channel, `drop` unsubscribes."""
        self._database = database
        self._name = names.thread
        self._want = want
        self._drop = drop
        self._feeds: dict[str, ThreadFeed] = {}

    @contextmanager
    def follow(self, thread_id: UUID) -> Generator[ThreadFeed]:
        """Share the feed of a thread for as long as the context lasts."""
        channel = self._name(thread_id)
        feed = self._feeds.get(channel)
        if feed is None:
            feed = self._feeds[channel] = ThreadFeed(thread_id)
            self._want(channel)
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers:
                del self._feeds[channel]
                self._drop(channel)

    async def next_run(self, thread_id: UUID, seq: int) -> RunOfThread | None:
        """Read the run after a place; None where there is none yet. Runs that were taken out of the thread are passed.

        Raises:
            NotFound: the thread is gone.
        """
        values = {"thread_id": thread_id, "seq": seq}
        if not await transact(self._database, _IS_THERE, values):
            raise NotFound("thread")
        runs = await transact(self._database, _NEXT, values, RunOfThread)
        return runs[0] if runs else None

    async def run_at(self, thread_id: UUID, seq: int) -> RunOfThread | None:
        """Read the run at a place, if there is one."""
        runs = await transact(self._database, _AT, {"thread_id": thread_id, "seq": seq}, RunOfThread)
        return runs[0] if runs else None

    async def place_of(self, thread_id: UUID, run_id: UUID) -> int | None:
        """Say the place of a run; None where it has none yet.

        Raises:
            NotFound: it is not of this thread.
        """
        rows = await transact(self._database, _SEQ, {"thread_id": thread_id, "run_id": run_id})
        if not rows:
            raise NotFound("run")
        return rows[0].seq

    def heard(self, channel: str) -> None:
        """Have those look who wait for news of that thread, if there are any."""
        if (feed := self._feeds.get(channel)) is not None:
            feed.wake()

    def wake_all(self) -> None:
        """Have everybody look."""
        for feed in self._feeds.values():
            feed.wake()

    def tire(self, before: float) -> None:
        """Have those look who began to wait before that time."""
        for feed in list(self._feeds.values()):
            feed.tire(before)

    async def watch(self) -> None:
        """Look for ever at the threads that somebody waits for, many in one statement."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            awaited = [feed for feed in self._feeds.values() if feed.is_awaited]
            for first in range(0, len(awaited), THREADS_AT_ONCE):
                some = awaited[first : first + THREADS_AT_ONCE]
                values = {"thread_ids": [feed.thread_id for feed in some], "seqs": [feed.told for feed in some]}
                with skip_if_database_away(log, "threads.database_away"):
                    for (thread_id,) in await transact(self._database, _NEWS, values):
                        self.heard(self._name(thread_id))
