"""Read an item that is long, in steps: a megabyte of escapes or digits would keep the event loop for 20 or 30 ms.

Its long texts and long numbers are read first, a piece at a time, and a short text is put in the place of each. What is
left is read at once. The outcome is that of `read_json`, refusals included.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Generator
from typing import Any, cast

from api.strict import MOST_VALUES, malformed, no_repeated_name, read_json, too_deep

LONG_BYTES = 16 << 10
"""An item that is longer is read in steps."""
PIECE = 16 << 10
LEAST = 64
"""Shorter texts and numbers are left where they are."""

MOST_PARTS = 5 * MOST_VALUES
"""Strings, and what stands between them: so many values have no more than two strings each, their names included."""

_INSIDE = re.compile(r'(?:[^"\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+', re.DOTALL)
_DIGITS = re.compile(rf"[0-9]{{{LEAST},}}+")
_PART_OF_NUMBER = frozenset("+-.0123456789eE")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")

_Steps = Generator[None]


class _Reading:
    """One item, and what was taken out of it."""

    def __init__(self, item: str, what: str) -> None:
        self._item = item
        self._what = what
        self._mark = secrets.token_hex(16)
        """What is put in a place begins with it: nobody could have written it."""
        self._taken: list[str | int] = []
        self._looked_at = 0
        """Since the last step."""

    def read(self) -> Generator[None, None, Any]:
        """Read it."""
        rest: list[str] = []
        at = 0
        while (quote := self._item.find('"', at)) >= 0:
            rest.append((yield from self._without_numbers(self._item[at:quote])))
            if len(rest) > MOST_PARTS:
                raise malformed(f"The {self._what} is not JSON.")
            start, at = quote, quote + 1
            pieces: list[str] = []
            while self._item[at : at + 1] != '"':
                end = self._end(at)
                pieces.append(self._decoded(at, end))
                size, at = end - at, end
                if self._is_enough(size):
                    yield
            at += 1
            if self._is_enough(LEAST):
                yield
            rest.append(self._item[start:at] if at - start < LEAST else self._take_out(_joined(pieces)))
        rest.append((yield from self._without_numbers(self._item[at:])))
        yield
        value = read_json("".join(rest).encode(), self._what)
        yield
        try:
            return self._restored(value)
        except RecursionError:
            raise too_deep() from None

    def _end(self, at: int) -> int:
        """Tell where the next piece of a text ends: behind a whole character, not far away."""
        inside = _INSIDE.match(self._item, at, at + PIECE)
        if inside is None or inside.end() == at:
            raise malformed(f"The {self._what} is not JSON at character {at}.")
        return inside.end()

    def _decoded(self, start: int, end: int) -> str:
        try:
            return json.loads(f'"{self._item[start:end]}"')
        except json.JSONDecodeError as error:
            raise malformed(f"The {self._what} is not JSON at character {start + error.pos - 1}.") from None

    def _without_numbers(self, text: str) -> Generator[None, None, str]:
        """Take the long numbers out of what stands between two strings."""
        rest: list[str] = []
        at = looked_at = 0
        while looked_at < len(text):
            if self._is_enough(PIECE):
                yield
            digits = _DIGITS.search(text, looked_at, looked_at + PIECE)
            if digits is None:
                looked_at += PIECE - LEAST
                continue
            start, looked_at = digits.start(), cast("re.Match[str]", _DIGITS.match(text, digits.start())).end()
            start -= text[start - 1 : start] == "-"
            around = {text[start - 1 : start], text[looked_at : looked_at + 1]}
            if not around.isdisjoint(_PART_OF_NUMBER) or digits[0][0] == "0":
                continue
            try:
                value = int(text[start:looked_at])
            except ValueError:
                raise malformed(f"The {self._what} holds a number of too many digits.") from None
            rest += [text[at:start], self._take_out(value)]
            at = looked_at
        return "".join([*rest, text[at:]])

    def _is_enough(self, size: int) -> bool:
        """Note how much was looked at; tell whether it is time for a step."""
        self._looked_at += size
        enough = self._looked_at >= PIECE // 2
        if enough:
            self._looked_at = 0
        return enough

    def _take_out(self, value: str | int) -> str:
        self._taken.append(value)
        return f'"{self._mark}{len(self._taken) - 1}"'

    def _restored(self, value: Any) -> Any:
        """Put back what was taken out."""
        match value:
            case str() if value.startswith(self._mark):
                return self._taken[int(value.removeprefix(self._mark))]
            case list():
                return [self._restored(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
            case dict():
                return no_repeated_name([(self._name(name), self._restored(each)) for name, each in value.items()])  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            case _:
                return value

    def _name(self, name: str) -> str:
        restored = self._restored(name)
        if not isinstance(restored, str):
            raise malformed(f"The {self._what} is not JSON: a number is no name.")
        return restored


def _joined(pieces: list[str]) -> str:
    """Join the pieces of a text; a character may be two escapes, and one of them at the end of a piece."""
    text = pieces[0] if pieces else ""
    for piece in pieces[1:]:
        if _PAIR.match(text[-1:] + piece[:1]):
            pair = (text[-1:] + piece[:1]).encode("utf-16", "surrogatepass").decode("utf-16")
            text = text[:-1] + pair + piece[1:]
        else:
            text += piece
    return text


def read_in_steps(item: bytes, what: str) -> Generator[None, None, Any]:
    """Read JSON as `read_json` does, with a moment for others now and then.

    Raises:
        Refused: 400, it is malformed.
    """
    if len(item) <= LONG_BYTES:
        return read_json(item, what)
    try:
        text = item.decode()
    except UnicodeDecodeError:
        raise malformed(f"The {what} is not UTF-8.") from None
    return (yield from _Reading(text, what).read())
