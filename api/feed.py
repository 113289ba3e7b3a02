"""What is known of one followed run, shared by all its followers: its newest text, and the events it told.

Pure bookkeeping: entries go in, whether from the log or live, and it says what a follower at a given id is still to be
told. It knows neither Redis nor HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any
from uuid import UUID

from shared.event_log import BEFORE_ALL, CREATED, Entry, Id, digest, end_entry, final_text, knows
from shared.growth import Growth

KEPT_EVENTS = 256
"""Events that a feed keeps; a follower that is further behind has them read from the log."""


@dataclass(slots=True, eq=False)
class Event:
    """Something to be told that is not a text."""

    id: Id
    name: str
    fields: Mapping[str, Any]
    frames: dict[Hashable, bytes] = field(default_factory=dict[Hashable, bytes])
    """What followers share of it, once one of them has written it."""


@dataclass(slots=True, eq=False)
class Text:
    """The text as it was at an id."""

    id: Id
    whole: str
    before: Id | None
    """The id of the text that `growth` grew out of."""
    growth: Growth | None
    frames: dict[Hashable, bytes] = field(default_factory=dict[Hashable, bytes])
    """What followers share of it, once one of them has written it."""


class Waited(Enum):
    """What a wait was for, seen from its end."""

    FOR_NEWS = auto()
    """Something has come."""
    NO_LONGER = auto()
    """Who waited has gone."""
    IN_VAIN = auto()
    """There were no news for so long."""


class Feed:
    """One run, as far as this process knows."""

    __slots__ = (
        "_base",
        "_created",
        "_events",
        "_expired",
        "_forgotten",
        "_message_id",
        "_waiting",
        "ended",
        "run_id",
        "taken",
        "text",
        "top",
        "touched",
    )

    def __init__(self, run: Any) -> None:
        self.run_id: UUID = run.id
        self.top = CREATED
        """The last id taken in."""
        self.text: Text | None = None
        self.ended = False
        """Whether everything was told; `done` is the last event then."""
        self.touched = asyncio.get_running_loop().time()
        """When the last news came."""
        self.taken = 0
        """How many entries were taken in."""
        self._base: tuple[Id, str] | None = None
        """The text that the next growth is of; None after a hole, until a whole text comes."""
        self._message_id = str(run.message_id)
        created = {"message": {"id": str(run.user_message_id), "role": "user"}, "run_id": str(run.id)}
        self._created = Event(CREATED, "message_created", created)
        self._events: list[Event] = []
        self._forgotten = BEFORE_ALL
        self._expired = BEFORE_ALL
        """A gap with nothing but `message_created` before it; who asks from the start is not missing anything."""
        self._waiting: dict[asyncio.Future[Waited], float] = {}

    def take_log(self, entries: Iterable[Entry]) -> bool:
        """Take in what the log holds; a hole in it stays one. False where the end is not what was read: ask the row."""
        known = self._take(entries, holes=True)
        self.wake()
        return known

    def take_live(self, entries: Iterable[Entry]) -> bool:
        """Take in what was announced; False where something between is missing: read the log."""
        known = self._take(entries, holes=False)
        self.wake()
        return known

    def cut(self) -> None:
        """End it without `done`, because it cannot be told on; a reader may resume."""
        self.ended = True
        self.wake()

    def settle(self, run: Any, *, log_was_read: bool = True) -> None:
        """Take in the end from the run's row, which is the truth; what is missing before it is gone.

        Or it is only out of reach, where the log could not be read: then there is a gap for every reader.
        """
        if self.ended:
            return
        last, text = Id(run.attempt, run.last_entry), final_text(run)
        if self.top.attempt < last.attempt:
            self._begin_attempt()
        missed = text is not None and (self._base is None or (self.top <= last and self._base[1] != text))
        at = last if self.top < last else Id(last.attempt, self.top.n + 1)  # Ids before it may have been told.
        hole = Id(at.attempt, at.n - 1) if missed else last
        if last.n and self.top < hole:
            self._expired = hole if self.top == CREATED and log_was_read else BEFORE_ALL
            self._tell(Event(hole, "gap", {}))
        if missed and text is not None:
            self.text = Text(at, text, None, None)
        self._end(end_entry(run))
        self.wake()

    def _take(self, entries: Iterable[Entry], *, holes: bool) -> bool:
        for entry in entries:
            if entry.id <= self.top or self.ended:
                continue
            self.touched = asyncio.get_running_loop().time()
            if entry.is_end:
                if not knows(entry.event) or not self._knows_all_before(entry):
                    return False
                self.taken += 1
                self._end(entry)
                continue
            if entry.id.attempt > self.top.attempt:
                self._begin_attempt()
            if entry.id.n != (self.top.n + 1 if entry.id.attempt == self.top.attempt else 1):
                if not holes:
                    return False
                self._base = None
                self._tell(Event(Id(entry.id.attempt, entry.id.n - 1), "gap", {}))
            self.taken += 1
            self.top = entry.id
            if entry.event is None:
                self._take_text(entry)
            elif knows(entry.event):
                self._tell(self._event(entry))
        return True

    def _take_text(self, entry: Entry) -> None:
        grown = entry.growth
        if grown is None:
            whole, before = entry.text or "", None
        elif self._base is None:
            return
        else:
            before, base = self._base
            whole = grown.of(base)
        self._base = (entry.id, whole)
        self.text = Text(entry.id, whole, before, grown)

    def _begin_attempt(self) -> None:
        """What the attempt before told is obsolete."""
        self._base = None
        self.text = None
        self._events.clear()
        self._forgotten = BEFORE_ALL

    def _knows_all_before(self, end: Entry) -> bool:
        body = end.body
        attempt = end.id.attempt - 1
        if self.top.attempt != attempt:
            return body["last"] == 0 and "digest" not in body
        if self.top.n < body["last"]:
            return False
        if self.top.n > body["last"] or "digest" not in body:
            return True
        return (
            self._base is not None and len(self._base[1]) == body["length"] and digest(self._base[1]) == body["digest"]
        )

    def _end(self, entry: Entry) -> None:
        self._tell(self._event(entry))
        self._tell(Event(Id(entry.id.attempt, 1), "done", {"status": entry.body["status"]}))
        self.top = Id(entry.id.attempt, 1)
        self.ended = True

    def _event(self, entry: Entry) -> Event:
        body = entry.body
        match entry.event:
            case "message_started":
                fields = {"attempt": entry.id.attempt, "reason": body["reason"]}
            case "tool_call":
                fields = {key: body[key] for key in ("tool_call_id", "tool_name", "args")}
            case "tool_result":
                fields = {key: body[key] for key in ("tool_call_id", "tool_name", "content")}
            case "message_complete":
                fields = {"usage": body["usage"]}
            case "cancelled":
                fields = {"partial": body["partial"]}
            case "error":
                return Event(entry.id, "error", {"error": body["error"]})
            case other:
                raise ValueError(f"the log of run {self.run_id} holds an unknown event {other!r}")
        return Event(entry.id, str(entry.event), {"message_id": self._message_id, **fields})

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        if len(self._events) > KEPT_EVENTS:
            self._forgotten = self._events.pop(0).id

    def has_forgotten(self, cursor: Id) -> bool:
        """Whether a follower there must have events read from the log."""
        return cursor < self._forgotten

    def recall(self, cursor: Id, entries: Iterable[Entry]) -> list[Event]:
        """Turn entries read from the log after a cursor into the events that were forgotten, and holes into gaps."""
        attempt, forgotten = self._forgotten
        events: list[Event] = []
        told = cursor.n if cursor.attempt == attempt else 0
        for entry in entries:
            if entry.id.attempt != attempt or entry.id > self._forgotten:
                continue
            if entry.id.n != told + 1:
                events.append(Event(Id(attempt, entry.id.n - 1), "gap", {}))
            if knows(entry.event):
                events.append(self._event(entry))
            told = entry.id.n
        if told < forgotten:
            events.append(Event(self._forgotten, "gap", {}))
        return events

    def after(self, cursor: Id, forgotten: Iterable[Event] = ()) -> Iterator[Event | Text]:
        """Say, in order, what a follower at that id is still to be told; of the texts, the newest.

        `forgotten` are the events that had to be recalled for it.
        """
        if cursor < CREATED:
            yield self._created
        text = self.text if self.text is not None and self.text.id > cursor else None
        for event in [*forgotten, *self._events]:
            if event.id <= cursor or (event.id == self._expired and cursor < CREATED):
                continue
            if text is not None and text.id < event.id:
                yield text
                text = None
            yield event
        if text is not None:
            yield text

    def wait(self) -> asyncio.Future[Waited]:
        """Make what is done as soon as there are news; whoever waits for it may be done with it for another reason."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[Waited] = loop.create_future()
        self._waiting[waiting] = loop.time()
        return waiting

    def tire(self, before: float) -> None:
        """Have those look who began to wait before that time; forget who waits no longer."""
        for waiting, since in list(self._waiting.items()):
            if since < before or waiting.done():
                del self._waiting[waiting]
                end_wait(waiting, Waited.IN_VAIN)

    def wake(self) -> None:
        """Have every follower look."""
        for waiting in self._waiting:
            end_wait(waiting, Waited.FOR_NEWS)
        self._waiting.clear()


def end_wait(waiting: asyncio.Future[Waited], reason: Waited) -> None:
    """End a wait, if it has not ended; the first reason counts."""
    if not waiting.done():
        waiting.set_result(reason)
