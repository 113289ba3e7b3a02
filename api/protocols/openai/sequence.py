"""Sequence numbers of a response's events, made from the ids of the run's: each process gives an event the same one."""

from __future__ import annotations

from typing import NamedTuple

from agent_relay.shared.event_log import BEFORE_ALL, CREATED, Entry, Id

_ENTRIES, _ITEMS, _STAGES = 10**7, 100, 10
MOST_ITEMS = _ITEMS - 1
LAST_ENTRY = _ENTRIES - 1
FIRST_CALL = 50
"""The output index of the first call for the client; messages have those before it."""

TEXT_DONE, PART_DONE, ITEM_DONE, ADDED, PART_ADDED, DELTA = range(6)
"""Stages of an item, in the order that they have within one event: what came before it is closed first."""
END_TEXT_DONE, END_PART_DONE, END_ITEM_DONE, LIFECYCLE = range(6, 10)


class Place(NamedTuple):
    """Where an event of a response stands. It is a number below 2**53 for 90,000 attempts of a day each."""

    id: Id
    """The run's event that it is of."""
    item: int
    """The output item that it is about, or the last one so far; -1 before all."""
    stage: int

    @property
    def number(self) -> int:
        """The sequence number, which grows with each event; numbers between them are left out."""
        attempt, n = self.id
        return ((attempt * _ENTRIES + min(n, LAST_ENTRY)) * _ITEMS + self.item + 1) * _STAGES + self.stage

    @classmethod
    def of(cls, number: int) -> Place:
        """Read a sequence number."""
        rest, stage = divmod(number, _STAGES)
        rest, item = divmod(rest, _ITEMS)
        return cls(Id(*divmod(rest, _ENTRIES)), item - 1, stage)

    @property
    def is_last_of_its_event(self) -> bool:
        """Whether nothing else comes of the run's event."""
        is_end_of_run = self.id.n == 0
        return self.stage == LIFECYCLE or (self.stage == DELTA and not is_end_of_run) or self.id <= CREATED

    @property
    def cursor(self) -> Id:
        """The run's event that a reader who has seen this one has whole."""
        if self.is_last_of_its_event:
            return self.id
        attempt, n = self.id
        return Id(attempt, n - 1) if n else Id(attempt - 1, LAST_ENTRY)


def text_at(entries: list[Entry], place: Id) -> str | None:
    """Work out the text as it was at an id, from the log; None where the log does not say."""
    text: str | None = None
    last: Id | None = None
    for entry in entries:
        if entry.id.attempt != place.attempt or entry.id > place:
            continue
        if last is not None and entry.id.n != last.n + 1:
            text = None
        last = entry.id
        if entry.event is None:
            grown = entry.growth
            if grown is None:
                text = entry.text
            elif text is not None:
                text = grown.of(text)
    return text if last == place else None


FROM_THE_START = Place(BEFORE_ALL, -1, 0)
