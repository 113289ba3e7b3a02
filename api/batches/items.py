"""Cut the items out of a body as it comes, without reading what is in them: only where each begins and ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from api.problems import Refused, invalid
from api.strict import malformed, read_json

MOST_VALUES = 2_000
"""Values that an item may hold; more would take the event loop too long at once. Text, however long, is one."""

_TOKEN = re.compile(rb'["\[\]{},]')
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NAME_OF_ITEMS = re.compile(rb'[ \t\r\n]*"items"[ \t\r\n]*:[ \t\r\n]*')
_SPACE = b" \t\r\n"
_BACKSLASH = b"\\"[0]
_DEEPER = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of an item is too much."""

    item_bytes: int

    def check(self, index: int, size: int) -> None:
        """Refuse an item of so many bytes."""
        if size > self.item_bytes:
            raise invalid(f"/items/{index}", "item_too_long", f"An item has at most {self.item_bytes} bytes")

    @staticmethod
    def too_many_values(index: int) -> Refused:
        """Refuse an item of more than `MOST_VALUES` values."""
        return invalid(f"/items/{index}", "too_many_values", f"An item holds at most {MOST_VALUES} values")


class Cutter(Protocol):
    """Cuts a body into items."""

    head: dict[str, Any]
    """What the body says besides the items; where it names them, an empty array stands for them."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take in what has come, and yield the items that are whole by then."""
        ...

    def end(self) -> Iterator[bytes]:
        """Yield what is left when the body has ended."""
        ...


class Lines:
    """NDJSON: an item a line; empty lines are none."""

    def __init__(self, limits: Limits) -> None:
        self.head: dict[str, Any] = {}
        self._limits = limits
        self._count = 0
        self._tail = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that are whole."""
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        for line in lines:
            yield from self._line(line)
        self._limits.check(self._count, len(self._tail))

    def end(self) -> Iterator[bytes]:
        """Yield the last line, if nothing ended it."""
        yield from self._line(self._tail)

    def _line(self, line: bytes) -> Iterator[bytes]:
        item = line.strip(_SPACE)
        if not item:
            return
        self._limits.check(self._count, len(item))
        if _is_dense(item):
            raise self._limits.too_many_values(self._count)
        self._count += 1
        yield item


def _is_dense(item: bytes) -> bool:
    """Tell whether there are more than `MOST_VALUES` values; what might be is counted outside of strings."""
    if item.count(b",") + item.count(b"[") + item.count(b"{") < MOST_VALUES:
        return False
    values = at = 0
    while values < MOST_VALUES and (token := _TOKEN.search(item, at)):
        values += token[0] in b",[{"
        at = _end(item, token) or len(item)
    return values >= MOST_VALUES


def _end(buffer: bytes, token: re.Match[bytes]) -> int | None:
    """Tell where a bracket, a comma or a string ends; None where a string does not."""
    if token[0] != b'"':
        return token.end()
    quote = buffer.find(b'"', token.end())
    if quote < 0 or buffer[quote - 1] != _BACKSLASH:
        return quote + 1 or None
    string = _STRING.match(buffer, token.start())
    return string.end() if string else None


class _Place(Enum):
    """Where in the body a piece stands: a member, an item, or a place where nothing may stand."""

    BEFORE = auto()
    MEMBER = auto()
    ITEM = auto()
    BEHIND_ITEMS = auto()
    AFTER = auto()


_BEHIND = {
    (_Place.BEFORE, 1, b"{"): _Place.MEMBER,
    (_Place.MEMBER, 1, b","): _Place.MEMBER,
    (_Place.MEMBER, 0, b"}"): _Place.AFTER,
    (_Place.ITEM, 2, b","): _Place.ITEM,
    (_Place.ITEM, 1, b"]"): _Place.BEHIND_ITEMS,
    (_Place.BEHIND_ITEMS, 1, b","): _Place.MEMBER,
    (_Place.BEHIND_ITEMS, 0, b"}"): _Place.AFTER,
}
"""What stands behind a piece that ends there: at so many open brackets, by this comma or bracket."""

_FIRST_VALUE = (_Place.MEMBER, 2, b"[")
"""Where the array of items may begin."""

_DEPTHS = {_Place.BEFORE: 2, _Place.MEMBER: 1, _Place.ITEM: 2, _Place.BEHIND_ITEMS: 3, _Place.AFTER: 99}
"""So many brackets are open at the least around what lies within a piece there."""


class Members:
    """JSON: an object, one of whose members, `items`, is the array. What stands between two commas is a piece."""

    def __init__(self, limits: Limits) -> None:
        self.head: dict[str, Any] = {}
        self._limits = limits
        self._count = 0
        self._place = _Place.BEFORE
        self._buffer = b""
        self._begin = 0
        """Where in the buffer the piece begins."""
        self._at = 0
        """How far the buffer has been looked at."""
        self._depth = 0
        self._values = 0
        """How many the piece has."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the items that are whole."""
        self._buffer += chunk
        while (token := _TOKEN.search(self._buffer, self._at)) and (end := _end(self._buffer, token)):
            self._at = end
            if token[0] != b'"' and (item := self._bracket_or_comma(token[0], end - 1)) is not None:
                yield item
        if token is None:
            self._at = len(self._buffer)
        self._buffer, self._begin, self._at = self._buffer[self._begin :], 0, self._at - self._begin
        self._limits.check(self._count, len(self._buffer))

    def end(self) -> Iterator[bytes]:
        """Yield nothing: whatever came whole has been yielded."""
        if self._place is not _Place.AFTER or self._buffer.strip(_SPACE):
            raise malformed("The body is not one whole JSON object.")
        yield from ()

    def _bracket_or_comma(self, token: bytes, start: int) -> bytes | None:
        """Go on behind a bracket or a comma; returns the item that it ends, if it does."""
        self._depth += _DEEPER.get(token, 0)
        self._values += token in b",[{"
        if self._values > MOST_VALUES:
            raise self._limits.too_many_values(self._count)
        where = self._place, self._depth, token
        item = None
        if (behind := _BEHIND.get(where)) is not None:
            item = self._whole(self._buffer[self._begin : start], token)
        elif where == _FIRST_VALUE and _NAME_OF_ITEMS.fullmatch(self._buffer, self._begin, start):
            behind = _Place.ITEM
            self._name({"items": []})
        elif self._depth < _DEPTHS[self._place]:
            raise malformed("The body is not one whole JSON object.")
        if behind is not None:
            self._place, self._begin, self._values = behind, self._at, 0
        return item

    def _whole(self, piece: bytes, token: bytes) -> bytes | None:
        """Take a piece that is whole; returns it if it is an item. Before a closing bracket there may be none."""
        nothing = not piece.strip(_SPACE)
        match self._place:
            case _Place.ITEM if self._count or not nothing or token == b",":
                self._limits.check(self._count, len(piece))
                self._count += 1
                return piece
            case _Place.MEMBER if self.head or not nothing or token == b",":
                self._member(piece)
            case _ if not nothing:
                raise malformed("The body is not one whole JSON object.")
            case _:
                pass
        return None

    def _member(self, piece: bytes) -> None:
        self._limits.check(self._count, len(piece))
        member: dict[str, Any] = read_json(b"{%s}" % piece)
        if not member:
            raise malformed("The body is not one whole JSON object.")
        self._name(member)

    def _name(self, member: dict[str, Any]) -> None:
        if member.keys() & self.head.keys():
            raise malformed("A name stands twice in one object.")
        self.head |= member
