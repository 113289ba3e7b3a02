"""The state of one followed run, shared by all its readers: its newest text, and its events.

It has no input or output: entries go in, from the log or live, and it returns the events that a reader at a given id
has not received. It knows neither Redis nor HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from agent_relay.api.streaming.wakeups import Wakeups
from agent_relay.shared.database.tables import AttemptReason, RunStatus
from agent_relay.shared.event_log import BEFORE_ALL, CREATED, REASONING, Entry, Id, digest, end_entry, final_text, knows
from agent_relay.shared.rows import RunEnd, RunRow
from agent_relay.shared.text_delta import Growth

_ALONE: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "message_enqueued": lambda body: {"message": body["message"]},
    "pause": lambda _: {"status": RunStatus.WAITING},
    "error": lambda body: {"error": body["error"]},
}
"""Events that are not about the answer, so that its id is not among their fields."""
_TEXTS = frozenset({None, REASONING})
"""Of the answer's text, and of the reasoning, entries have deltas."""
_COPIED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tool_call": (("tool_call_id", "tool_name", "args"), ("native", "parent_tool_call_id")),
    "tool_result": (("tool_call_id", "tool_name", "content"), ("native", "parent_tool_call_id")),
    "progress": (("name", "data"), ("tool_call_id",)),
    "file": (("file_id", "media_type", "bytes"), ()),
    "waiting": (("requests",), ()),
    "answered": (("request_id",), ("approve",)),
    "message_complete": (("usage",), ()),
    "cancelled": (("partial",), ()),
}
"""Events that are sent as they are in the log: the fields that each has, and those that it may have."""

KEPT_EVENTS = 256
"""Events that a feed keeps; for a reader that is further behind they are read from the log."""


@dataclass(slots=True, eq=False)
class Event:
    """An event that is not a text."""

    id: Id
    name: str
    fields: Mapping[str, Any]
    frames: dict[Hashable, bytes] = field(default_factory=dict[Hashable, bytes])
    """The shared text of it, once it has been written for one of the readers."""


@dataclass(slots=True, eq=False)
class Text:
    """The text, or a part of the reasoning, as it was at an id."""

    id: Id
    whole: str
    before: Id | None
    """The id of the text that `growth` grew out of."""
    growth: Growth | None
    part: int = 0
    """Of the reasoning; 0 is the answer's text."""
    frames: dict[Hashable, bytes] = field(default_factory=dict[Hashable, bytes])
    """The shared text of it, once it has been written for one of the readers."""


class RunFeed(Wakeups):
    """One run, as far as this process has read it."""

    __slots__ = (
        "_base",
        "_created",
        "_events",
        "_expired",
        "_forgotten",
        "_kept",
        "_message_id",
        "_thought",
        "_thoughts",
        "_valid_from",
        "ended",
        "run_id",
        "taken",
        "text",
        "top",
        "touched",
        "waits",
    )

    def __init__(self, run: RunRow) -> None:
        super().__init__()
        self.run_id = run.id
        self.top = CREATED
        """The last id taken in."""
        self.text: Text | None = None
        self.ended = False
        """Whether all events were sent; `done` is the last one then."""
        self.waits = False
        """Whether the run waits for answers, by the events so far."""
        self.touched = asyncio.get_running_loop().time()
        """When the last entry came."""
        self.taken = 0
        """How many entries were taken in."""
        self._base: tuple[Id, str] | None = None
        """The text that the next growth is of; None after a hole, until a whole text comes."""
        self._thoughts: dict[int, Text] = {}
        """The parts of the reasoning, each as it is now."""
        self._thought: Text | None = None
        """The one that its next growth is of; None after a hole."""
        self._message_id = str(run.message_id)
        created = {"message": {"id": str(run.user_message_id), "role": "user"}, "run_id": str(run.id)}
        self._created = Event(CREATED, "message_created", created)
        self._events: list[Event] = []
        self._forgotten = BEFORE_ALL
        self._kept: list[Id] = []
        """The last event of each attempt that another one went on from: it stays valid, whatever later ones do."""
        self._valid_from = 1
        """The attempt that began with the query; the later ones have gone on from there."""
        self._expired = BEFORE_ALL
        """A gap with nothing but `message_created` before it; a reader from the start is not missing anything."""

    def take_log(self, entries: Iterable[Entry]) -> bool:
        """Add the entries of the log; a missing one stays missing. False if its end cannot be used: read the row."""
        known = self._take(entries, holes=True)
        self.wake()
        return known

    def take_live(self, entries: Iterable[Entry]) -> bool:
        """Add an announcement; False if entries before it are missing: read the log."""
        known = self._take(entries, holes=False)
        self.wake()
        return known

    def cut(self) -> None:
        """End it without `done`, because it cannot go on; a reader may resume."""
        self.ended = True
        self.wake()

    def settle(self, run: RunEnd, *, log_was_read: bool = True) -> None:
        """Add the end from the run's row, which is the truth; missing entries before it are gone.

        If the log could not be read, they are only out of reach: then there is a gap for every reader.
        """
        if self.ended:
            return
        last, text = Id(run.attempt, run.last_entry), final_text(run)
        if self.top.attempt < last.attempt:
            self._begin_attempt()
        missed = text is not None and (self._base is None or (self.top <= last and self._base[1] != text))
        at = last if self.top < last else Id(last.attempt, self.top.n + 1)  # Earlier ids may have been sent.
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
            follows = entry.id.n == (self.top.n + 1 if entry.id.attempt == self.top.attempt else 1)
            if not follows and not holes:
                return False
            if entry.id.attempt > self.top.attempt:
                self._begin_attempt(entry)
            if not follows:
                self._base = self._thought = None
                self._tell(Event(Id(entry.id.attempt, entry.id.n - 1), "gap", {}))
            self.taken += 1
            self.top = entry.id
            self.waits = entry.event == "pause"
            if entry.event in _TEXTS:
                self._take_text(entry)
            elif knows(entry.event):
                self._tell(self._event(entry))
        return True

    def _miss_before(self, started: Entry) -> None:
        """Tell a gap where the log has lost the end of the attempt that this one goes on from."""
        with suppress(ValueError):  # Where another version wrote it, nothing is known to be missing.
            last = Id.parse(str(started.body.get("after")))
            if self.top < last < started.id:
                self.top = last
                self._tell(Event(last, "gap", {}))

    def _take_text(self, entry: Entry) -> None:
        if entry.event == REASONING:
            self._take_reasoning(entry)
            return
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

    def _take_reasoning(self, entry: Entry) -> None:
        part, grown, base = entry.body["part"], entry.growth, self._thought
        if grown is None:
            text = Text(entry.id, entry.text or "", None, None, part)
        elif base is None or base.part != part:
            return
        else:
            text = Text(entry.id, grown.of(base.whole), base.id, grown, part)
        self._thought = self._thoughts[part] = text

    def _begin_attempt(self, started: Entry | None = None) -> None:
        """Drop the events of the attempt before, unless this one goes on from it; its text in any case."""
        self._base = self._thought = None
        self.text = None
        if started is not None and started.body.get("reason") == AttemptReason.ANSWERED:
            self._miss_before(started)
            self._kept.append(self.top)
        if started is None or not _kept(started, "steps_kept"):
            last_kept = self._kept[-1] if self._kept else BEFORE_ALL
            self._events = [event for event in self._events if event.id <= last_kept]
            self._forgotten = min(self._forgotten, last_kept)
            self._valid_from = self.top.attempt + 1 if started is None else started.id.attempt
        self._forget_reasoning(0 if started is None else _kept(started, "reasoning_kept"))

    def _forget_reasoning(self, kept: int) -> None:
        """Drop the parts after those that an attempt goes on from, except those before a wait."""
        last_kept = self._kept[-1] if self._kept else BEFORE_ALL
        self._thoughts = {part: text for part, text in self._thoughts.items() if part <= kept or text.id <= last_kept}

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
        self.waits = False
        self._tell(self._event(entry))
        self._tell(Event(Id(entry.id.attempt, 1), "done", {"status": entry.body["status"]}))
        self.top = Id(entry.id.attempt, 1)
        self.ended = True

    def _event(self, entry: Entry) -> Event:
        body = entry.body
        if (fields := _ALONE.get(str(entry.event))) is not None:
            return Event(entry.id, str(entry.event), fields(body))
        if entry.event == "message_started":
            fields = {"attempt": entry.id.attempt, "reason": body["reason"], "steps_kept": _kept(entry, "steps_kept")}
            if thoughts := _kept(entry, "reasoning_kept"):
                fields["reasoning_kept"] = thoughts
        elif (keys := _COPIED.get(str(entry.event))) is not None:
            always, sometimes = keys
            fields = {key: body[key] for key in (*always, *(key for key in sometimes if key in body))}
        else:
            raise ValueError(f"the log of run {self.run_id} holds an unknown event {entry.event!r}")
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
        events: list[Event] = []
        told = cursor
        for entry in entries:
            attempt, n = entry.id
            is_valid = attempt >= self._valid_from or any(
                attempt == kept.attempt and entry.id <= kept for kept in self._kept
            )
            if not is_valid or entry.id > self._forgotten:
                continue
            if n != (told.n + 1 if attempt == told.attempt else 1):
                events.append(Event(Id(attempt, n - 1), "gap", {}))
            if knows(entry.event) and entry.event != REASONING:  # That is never forgotten.
                events.append(self._event(entry))
            told = entry.id
        if told < self._forgotten:
            events.append(Event(self._forgotten, "gap", {}))
        return events

    def after(self, cursor: Id, forgotten: Iterable[Event] = ()) -> Iterator[Event | Text]:
        """Return, in order, the events after that id for a reader; of the text and of each part, the newest.

        `forgotten` are the events that had to be read from the log for it.
        """
        if cursor < CREATED:
            yield self._created
        texts = self._texts_after(cursor)
        for event in [*forgotten, *self._events]:
            if event.id <= cursor or (event.id == self._expired and cursor < CREATED):
                continue
            while texts and texts[-1].id < event.id:
                yield texts.pop()
            yield event
        yield from reversed(texts)

    def _texts_after(self, cursor: Id) -> list[Text]:
        """List the text and the parts of the reasoning that are newer than a cursor, the newest first."""
        if not self._thoughts:
            return [self.text] if self.text is not None and self.text.id > cursor else []
        texts = self._thoughts.values() if self.text is None else [self.text, *self._thoughts.values()]
        return sorted((text for text in texts if text.id > cursor), key=lambda text: text.id, reverse=True)


def _kept(started: Entry, what: str) -> int:
    """Return how many steps, or parts of the reasoning, of earlier attempts an attempt goes on from."""
    kept = started.body.get(what)
    return kept if isinstance(kept, int) and not isinstance(kept, bool) and kept > 0 else 0
