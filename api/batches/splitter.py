"""Cut the items out of a body as it comes, without reading them: only where each begins and ends.

A cutter yields control at intervals, whatever the body holds, if it is fed a little at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count
from typing import Any, Protocol, cast

from agent_relay.api.problems import Refused, invalid
from agent_relay.api.requests.validation import MOST_VALUES, malformed, might_hold_many_values, read_json

_TOKEN = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
"""The rest of a string, without its end."""
_FLAT = rb'[^"\[\]{}]*+(?:"%s"[^"\[\]{}]*+)*+' % _INSIDE.pattern
_ITEM = re.compile(rb"[ \t\r\n]*+\{%s(?:\{%s\}%s)*+\}[ \t\r\n]*+," % (_FLAT, _FLAT, _FLAT), re.DOTALL)
"""An item as most are, and the comma behind it."""
_ITEM_BYTES = 4096
"""So long an item is looked for at once; longer ones are cut at each bracket, comma and string."""
TOKENS_A_STEP = 500
LINES_A_STEP = 1000
_BYTES_A_STEP = 64 << 10
_NAME_OF_ITEMS = re.compile(rb'[ \t\r\n]*"items"[ \t\r\n]*:[ \t\r\n]*')
_SPACE = b" \t\r\n"
_BACKSLASH = b"\\"[0]
_DEEPER = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of an item is too much."""

    item_bytes: int

    def check(self, index: int, size: int) -> None:
        """Refuse an item of this size in bytes."""
        if size > self.item_bytes:
            raise invalid(f"/items/{index}", "item_too_long", f"An item has at most {self.item_bytes} bytes")

    @staticmethod
    def too_many_values(index: int) -> Refused:
        """Refuse an item of more than `MOST_VALUES` values."""
        return invalid(f"/items/{index}", "too_many_values", f"An item holds at most {MOST_VALUES} values")


class Cutter(Protocol):
    """Cuts a body into items."""

    head: dict[str, Any]
    """The body without its items; an empty array replaces them."""

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Take received bytes, and yield the items that are whole by then; None now and then, to let others run."""
        ...

    def end(self) -> Iterator[bytes | None]:
        """Yield the rest when the body has ended."""
        ...


class Tokens:
    """Brackets, commas and strings, of which the end may yet have to come; no byte is looked at twice."""

    def __init__(self) -> None:
        self.buffer = b""
        self.at = 0
        """How far the buffer has been looked at."""
        self._inside = False
        """Whether that is inside of a string."""

    def add(self, chunk: bytes) -> None:
        """Take received bytes."""
        self.buffer += chunk

    def forget(self, size: int) -> None:
        """Drop this number of bytes, which were read."""
        self.buffer, self.at = self.buffer[size:], self.at - size

    def next(self) -> bytes | None:
        """Go behind the next bracket or comma, or the next string, which is a quote; None if more must come first."""
        if not self._inside:
            token = _TOKEN.search(self.buffer, self.at)
            self.at = token.end() if token else len(self.buffer)
            if token is None or token[0] != b'"':
                return token and token[0]
            self._inside = True
        quote = self.buffer.find(b'"', self.at)
        if quote < 0 or self.buffer[quote - 1] == _BACKSLASH:
            quote = cast("re.Match[bytes]", _INSIDE.match(self.buffer, self.at)).end()
            if self.buffer[quote : quote + 1] != b'"':
                self.at = quote
                return None
        self.at = quote + 1
        self._inside = False
        return b'"'


class Lines:
    """NDJSON: an item a line; empty lines are none."""

    def __init__(self, limits: Limits) -> None:
        self.head: dict[str, Any] = {}
        self._limits = limits
        self._count = 0
        self._tail = b""

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Yield the lines that are whole."""
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        for number, line in enumerate(lines, start=1):
            yield from self._line(line)
            if number % LINES_A_STEP == 0:
                yield None
        self._limits.check(self._count, len(self._tail))

    def end(self) -> Iterator[bytes | None]:
        """Yield the last line, if nothing ended it."""
        yield from self._line(self._tail)

    def _line(self, line: bytes) -> Iterator[bytes | None]:
        item = line.strip(_SPACE)
        if not item:
            return
        self._limits.check(self._count, len(item))
        if might_hold_many_values(item):
            yield from self._count_values(item)
        self._count += 1
        yield item

    def _count_values(self, item: bytes) -> Iterator[None]:
        """See that there are no more than `MOST_VALUES` values."""
        tokens, values = Tokens(), 0
        for start in range(0, len(item), _BYTES_A_STEP):
            tokens.add(item[start : start + _BYTES_A_STEP])
            for number, token in enumerate(iter(tokens.next, None), start=1):
                values += token in b",[{"
                if values >= MOST_VALUES:
                    raise self._limits.too_many_values(self._count)
                if number % TOKENS_A_STEP == 0:
                    yield
            tokens.forget(tokens.at)
            yield


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
"""The kind of end of a piece: by the number of open brackets, and by its comma or bracket."""

_FIRST_VALUE = (_Place.MEMBER, 2, b"[")
"""Where the array of items may begin."""

_DEPTHS = {_Place.BEFORE: 2, _Place.MEMBER: 1, _Place.ITEM: 2, _Place.BEHIND_ITEMS: 3, _Place.AFTER: 99}
"""So many brackets are open at the least around what lies within a piece there."""


class Members:
    """JSON: an object, one of whose members, `items`, is the array. The text between two commas is a piece."""

    def __init__(self, limits: Limits) -> None:
        self.head: dict[str, Any] = {}
        self._limits = limits
        self._count = 0
        self._place = _Place.BEFORE
        self._tokens = Tokens()
        self._begin = 0
        """Where in the buffer the piece begins."""
        self._depth = 0
        self._values = 0
        """How many the piece has."""

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Yield the items that are whole."""
        tokens = self._tokens
        tokens.add(chunk)
        for number in count(1):
            if (item := self._usual()) is None:
                if (token := tokens.next()) is None:
                    break
                if token != b'"':
                    item = self._bracket_or_comma(token, tokens.at - 1)
            if item is not None:
                yield item
            elif number % TOKENS_A_STEP == 0:
                yield None
        tokens.forget(self._begin)
        self._begin = 0
        self._limits.check(self._count, len(tokens.buffer))

    def end(self) -> Iterator[bytes | None]:
        """Yield nothing: all whole items have been yielded."""
        if self._place is not _Place.AFTER or self._tokens.buffer.strip(_SPACE):
            raise malformed("The body is not one whole JSON object.")
        yield from ()

    def _usual(self) -> bytes | None:
        """Go behind the next item and its comma at once, if it is as most are; returns it."""
        tokens = self._tokens
        if self._place is not _Place.ITEM or tokens.at != self._begin:
            return None
        found = _ITEM.match(tokens.buffer, tokens.at, tokens.at + _ITEM_BYTES)
        if found is None or might_hold_many_values(found[0]):
            return None
        item = found[0][:-1]
        self._limits.check(self._count, len(item))
        self._count += 1
        self._begin = tokens.at = found.end()
        return item

    def _bracket_or_comma(self, token: bytes, start: int) -> bytes | None:
        """Go on behind a bracket or a comma; returns the item that it ends, if it does."""
        self._depth += _DEEPER.get(token, 0)
        self._values += token in b",[{"
        if self._values > MOST_VALUES:
            raise self._limits.too_many_values(self._count)
        where = self._place, self._depth, token
        item = None
        if (behind := _BEHIND.get(where)) is not None:
            item = self._whole(self._tokens.buffer[self._begin : start], token)
        elif where == _FIRST_VALUE and _NAME_OF_ITEMS.fullmatch(self._tokens.buffer, self._begin, start):
            behind = _Place.ITEM
            self._name({"items": []})
        elif self._depth < _DEPTHS[self._place]:
            raise malformed("The body is not one whole JSON object.")
        if behind is not None:
            self._place, self._begin, self._values = behind, self._tokens.at, 0
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
