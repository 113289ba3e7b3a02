"""Publish the events of attempts into their event logs: coalesced for each run, and many runs in a round trip.

Nothing here waits for a reader, and an agent never waits for Redis: while a round trip is under way, newer texts
replace those that wait. Without Redis an attempt goes on; its unpublished events are read from the row at the end.

If the log of a run cannot be written, its attempt goes on without a log, and the others are served. A round trip
carries a few MiB, so that large texts delay the others by one round trip at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from agent_relay.shared.away import DATABASE_ERRORS, REDIS_ERRORS
from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.database import is_away
from agent_relay.shared.event_log import (
    BEFORE_ALL,
    LARGEST_TEXT_BYTES,
    REASONING,
    Append,
    Entry,
    EventLog,
    Id,
    Outcome,
    end_of,
    text_body,
)
from agent_relay.shared.rows import RunEnd
from agent_relay.shared.runs.wait import DeferredCall, shown_calls, wait_entries
from agent_relay.shared.text_delta import growth
from agent_relay.worker.storable import storable

log = logging.getLogger(__name__)

ROUND_TRIP_LENGTH = 4 << 20
"""Characters that one round trip carries; a text that is longer goes alone."""
BACK_OFF_SECONDS = 0.5
GIVE_UP_SECONDS = 2.0
"""How long the end of a run waits for earlier events; if Redis is away for longer, the end is read from the row."""


@dataclass(frozen=True, slots=True)
class _Thought:
    """A part of the reasoning as it is now."""

    part: int
    text: str


_Told = dict[str, Any] | str | _Thought
"""An event, the text as it is now, or a part of the reasoning."""


class EventWriter:
    """The events of one attempt, on their way into the log."""

    def __init__(
        self,
        run_id: UUID,
        attempt: int,
        ttl_seconds: int,
        *,
        changed: Callable[[EventWriter], None],
        fenced: Callable[[], None],
    ) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.text: str | None = None
        """The newest text."""
        self.first_shown_at: float | None = None
        """When the first text was published, by the monotonic clock."""
        self.last_entry = 0
        """The `n` of the last entry made, whether it stands in the log yet or not."""
        self._entered: tuple[str | None, int] = (None, 0)
        """The newest text that is an entry, and `last_entry`."""
        self._closed = False
        """Whether nothing more is written: the attempt is fenced, or its log cannot be written."""
        self._on_fenced = fenced
        self._ttl_seconds = ttl_seconds
        self._changed = changed
        self._waiting: list[_Told] = []
        self._numbered: list[_Told] = []
        """The events from which the entries in flight were made."""
        self._sending: Append | None = None
        self._numbered_after: list[_Told] = []
        self._after: Append | None = None
        """Numbered while Redis was away, and not yet sent: nobody knows whether the entries in flight were stored."""
        self._wrote = BEFORE_ALL
        self._base: str | None = None
        """The text that readers of the log have, if they have read it all."""
        self._thought: _Thought | None = None
        """The part of the reasoning that is the newest of the log."""
        self._quiet = asyncio.Event()
        self._quiet.set()

    def tell(self, event: dict[str, Any]) -> None:
        """Publish an event, whose names are plain text; events keep their order and none is left out."""
        self._waiting.append({name: storable(value) for name, value in event.items()})
        self._stir()

    def show(self, text: str) -> None:
        """Tell the whole text as it is now; it takes the place of one that still waits."""
        if text == self.text:
            return
        if self.text is None:
            self.first_shown_at = time.monotonic()
        self.text = text
        if self._waiting and isinstance(self._waiting[-1], str):
            self._waiting[-1] = text
        else:
            self._waiting.append(text)
        self._stir()

    def think(self, part: int, text: str) -> None:
        """Tell a whole part of the reasoning as it is now; it takes the place of the same one, if that waits last."""
        thought = _Thought(part, text)
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, _Thought) and last.part == part:
            self._waiting[-1] = thought
        else:
            self._waiting.append(thought)
        self._stir()

    async def flushed(self) -> None:
        """Wait until all events are in the log, nothing more is written, or Redis is away for too long."""
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                await self._quiet.wait()
        except TimeoutError:
            log.warning("publisher.gave_up run_id=%s", self.run_id)
            self._number()

    @property
    def known(self) -> tuple[str | None, int]:
        """Return the text that the row may show, and the entry that has this text. Read from the heartbeat's thread."""
        return self._entered

    @property
    def waits(self) -> bool:
        """Whether there is more to send."""
        return bool(self._waiting or self._after)

    def next(self) -> Append | None:
        """Return what is to be sent now: entries without a reply, or the waiting ones."""
        if self._sending is None and self._after is not None:
            self._sending, self._after = replace(self._after, wrote=self._wrote), None
            self._numbered, self._numbered_after = self._numbered_after, []
        if self._sending is None and self._waiting and not self._closed:
            self._sending = self._number()
        return self._sending

    def postpone(self) -> None:
        """Redis was away: number what waits, too, so that the row has the newest text under an id of its own."""
        if self._sending is None or not self._waiting or self._closed:
            return
        in_flight = self._numbered
        if (more := self._number()) is not None:
            before: Sequence[Entry] = () if self._after is None else self._after.entries
            self._after = replace(more, entries=[*before, *more.entries])
            self._numbered_after += self._numbered
        self._numbered = in_flight

    def sent(self, outcome: Outcome) -> None:
        """Process the outcome of what was sent."""
        if outcome is Outcome.FENCED:
            self._after = None
            self._close()
            self._on_fenced()
        elif self._sending is not None:
            self._wrote = self._sending.entries[-1].id
        self._sending = None
        if not self.waits:
            self._quiet.set()

    def set_aside(self) -> None:
        """Write nothing more: this log cannot be written. The end is read from the row."""
        self._sending = self._after = None
        self._close()
        self._quiet.set()

    def start_over(self) -> None:
        """After the log was lost: send its events again, with the whole text and under new ids.

        Readers may have received entries under their old ids before these were lost.
        """
        if self._sending is None:
            return
        events = [told for told in (*self._numbered, *self._numbered_after) if not isinstance(told, str)]
        later = [waiting for waiting in self._waiting if not isinstance(waiting, str)]
        self._after, self._numbered_after = None, []
        self._base = self._thought = None
        self._wrote = BEFORE_ALL
        self._waiting = [*events, *([] if self.text is None else [self.text]), *later]
        self._sending = self._number()

    def _number(self) -> Append | None:
        """Assign ids to pending events; encode a text as a delta."""
        entries: list[Entry] = []
        text, _ = self._entered
        for waiting in self._waiting:
            if isinstance(waiting, str):
                body = text_body(waiting, None if self._base is None else growth(self._base, waiting))
                self._base = text = waiting
            elif isinstance(waiting, _Thought):
                before = self._thought
                grown = growth(before.text, waiting.text) if before and before.part == waiting.part else None
                body = {"event": REASONING, "part": waiting.part, **text_body(waiting.text, grown)}
                self._thought = waiting
            else:
                body = waiting
            self.last_entry += 1
            entries.append(Entry(Id(self.attempt, self.last_entry), body))
        self._numbered, self._waiting = self._waiting, []
        self._entered = text, self.last_entry
        return Append(self.run_id, self._wrote, entries, self._ttl_seconds) if entries else None

    def _close(self) -> None:
        self._closed = True
        self._number()

    def _stir(self) -> None:
        if self._closed:
            self._number()  # The row names the entry of its text.
            return
        self._quiet.clear()
        self._changed(self)


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a run, and the future that waits until it is published."""

    append: Append
    told: asyncio.Future[None]


class Publisher:
    """All tellings of a process, one round trip after the other."""

    def __init__(self, event_log: EventLog, is_mine: Callable[[UUID, int], Awaitable[bool]]) -> None:
        self._event_log = event_log
        self._is_mine = is_mine
        self._changed: dict[EventWriter, None] = {}
        self._ends: list[_End] = []
        self._stirred = asyncio.Event()
        self._oldest_first = False
        self._in_doubt: dict[EventWriter, asyncio.Task[None]] = {}
        """Questions to PostgreSQL about runs whose logs are lost or fenced; other runs do not wait for them."""

    def begin(self, run_id: UUID, attempt: int, ttl_seconds: int, fenced: Callable[[], None]) -> EventWriter:
        """Open the event writer of an attempt; `fenced` is called once the run is no longer this attempt's."""
        return EventWriter(run_id, attempt, ttl_seconds, changed=self._note, fenced=fenced)

    async def tell_end(self, run: RunEnd, ttl_seconds: int) -> None:
        """Publish the end of a run from its row, in one round trip with other events of that moment.

        Raises:
            RedisError, OSError: it is not tried again; a sweeper publishes it.
        """
        end = _End(end_of(run, ttl_seconds), asyncio.get_running_loop().create_future())
        self._ends.append(end)
        self._stirred.set()
        await end.told

    async def tell_wait(self, row: Any, calls: Sequence[DeferredCall], retention_seconds: int) -> None:
        """Tell from its row that a run waits; its log lives as long as it may wait.

        Raises:
            RedisError, OSError: it is not tried again; readers see it in the row.
        """
        ttl_seconds = retention_seconds + int((row.wait_until - row.waiting_since).total_seconds())
        entries = wait_entries(row, shown_calls(calls, row))
        end = _End(Append(row.id, BEFORE_ALL, entries, ttl_seconds), asyncio.get_running_loop().create_future())
        self._ends.append(end)
        self._stirred.set()
        await end.told

    async def run(self) -> None:
        """Publish for ever."""
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            tellings, self._changed = self._changed, {}
            ends, self._ends = self._ends, []
            try:
                await self._publish(list(tellings), ends)
            except REDIS_ERRORS as away:
                log.warning("publisher.redis_away error=%r", away)
                await self._later(tellings, ends, away)
            except Exception:
                log.exception("publisher.failed runs=%d", len(tellings) + len(ends))
                await self._publish_one_by_one(tellings, ends)

    async def _publish_one_by_one(self, tellings: Collection[EventWriter], ends: Collection[_End]) -> None:
        """Publish one by one what failed together, and give up the logs that fail alone, too."""
        try:
            for telling in tellings:
                try:
                    await self._publish([telling], [])
                except REDIS_ERRORS:
                    raise
                except Exception:
                    log.exception("publisher.set_aside run_id=%s", telling.run_id)
                    telling.set_aside()
            for end in ends:
                try:
                    await self._publish([], [end])
                except REDIS_ERRORS:
                    raise
                except Exception as error:
                    log.exception("publisher.end_not_written run_id=%s", end.append.run_id)
                    _answer(end, error)
        except REDIS_ERRORS as away:
            await self._later(tellings, ends, away)

    async def _later(self, tellings: Collection[EventWriter], ends: Iterable[_End], away: Exception) -> None:
        for end in ends:
            _answer(end, away)
        for telling in tellings:
            telling.postpone()
        await asyncio.sleep(BACK_OFF_SECONDS)
        for telling in tellings:
            self._note(telling)

    def _note(self, telling: EventWriter) -> None:
        self._changed[telling] = None
        self._stirred.set()

    async def _publish(self, tellings: list[EventWriter], ends: list[_End]) -> None:
        sending = self._in_turn(
            [(telling, append) for telling in tellings if telling not in self._in_doubt and (append := telling.next())]
        )
        if not sending and not ends:
            return
        outcomes = await self._event_log.append([append for _, append in sending] + [end.append for end in ends])
        for end in ends:
            _answer(end)
        for (telling, _), outcome in zip(sending, outcomes[: len(sending)], strict=True):
            if outcome in {Outcome.LOST, Outcome.FENCED}:
                self._in_doubt[telling] = asyncio.create_task(self._settle(telling, outcome))
                continue
            telling.sent(outcome)
            if telling.waits:
                self._note(telling)

    def _in_turn(self, waiting: list[tuple[EventWriter, Append]]) -> list[tuple[EventWriter, Append]]:
        """Choose the appends of the next round trip: the smallest first, every second time the one that waits longest.

        Others wait for the next one. The log of a run whose text is too large is given up.
        """
        sending: dict[EventWriter, Append] = {}
        left: set[EventWriter] = set()
        room = ROUND_TRIP_LENGTH
        self._oldest_first = not self._oldest_first
        by_length = sorted(waiting, key=lambda each: each[1].length)
        for telling, append in dict([*(waiting[:1] if self._oldest_first else ()), *by_length]).items():
            if append.length > LARGEST_TEXT_BYTES:
                log.warning("publisher.set_aside run_id=%s characters=%d", telling.run_id, append.length)
                telling.set_aside()
            elif not sending or append.length <= room:
                sending[telling] = append
                room -= append.length
            else:
                left.add(telling)
        if left:
            self._changed = {**{telling: None for telling, _ in waiting if telling in left}, **self._changed}
            self._stirred.set()
        return list(sending.items())

    async def _settle(self, telling: EventWriter, outcome: Outcome) -> None:
        """After the log was lost, or fenced, ask PostgreSQL whether the run is still this attempt's."""
        try:
            is_mine = await self._ask(telling, outcome)
        except Exception:
            log.exception("publisher.set_aside run_id=%s", telling.run_id)
            telling.set_aside()
            return
        finally:
            del self._in_doubt[telling]
        if is_mine:
            log.info("publisher.log_lost run_id=%s attempt=%d", telling.run_id, telling.attempt)
            telling.start_over()
            self._note(telling)
        else:
            telling.sent(Outcome.FENCED)

    async def _ask(self, telling: EventWriter, outcome: Outcome) -> bool:
        """Ask until there is an answer; a log that is fenced by no attempt is removed, it must not end the run."""
        while True:
            try:
                is_mine = await self._is_mine(telling.run_id, telling.attempt)
                if is_mine and outcome is Outcome.FENCED:
                    refuse(
                        BadInput.LOG_KEY,
                        self._event_log.names.log(telling.run_id),
                        "an id above the attempt that holds the run",
                    )
                    await self._event_log.remove(telling.run_id)
            except (*DATABASE_ERRORS, *REDIS_ERRORS) as error:
                if isinstance(error, SQLAlchemyError) and not is_away(error):
                    raise
                log.warning("publisher.undecided run_id=%s error=%r", telling.run_id, error)
                telling.postpone()
            else:
                return is_mine
            await asyncio.sleep(BACK_OFF_SECONDS)


def _answer(end: _End, error: Exception | None = None) -> None:
    if end.told.done():
        return
    if error is None:
        end.told.set_result(None)
    else:
        end.told.set_exception(error)
