"""How numbers are written in settings, URLs, command lines and query strings: as JSON writes them.

Python takes more for a number: `1_000`, `+5`, ` 5`, `.5`, `inf`, digits of other scripts.
"""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)

WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
MUST_BE_WHOLE = "must be a whole number in plain digits, such as 20"
MUST_BE_DECIMAL = "must be a number in plain digits, such as 2.5"
_MOST_DIGITS = 309
"""Of a number: those of double precision."""


def whole_number(text: str) -> int:
    """Read a whole number.

    Raises:
        ValueError: it is not written plainly, or has over 309 digits; the message says how.
    """
    if not WHOLE.fullmatch(text) or len(text) > _MOST_DIGITS:
        raise ValueError(MUST_BE_WHOLE)
    return int(text)


def decimal_number(text: str) -> float:
    """Read a number; one beyond double precision is an infinity.

    Raises:
        ValueError: it is not written plainly; the message says how.
    """
    if not DECIMAL.fullmatch(text):
        raise ValueError(MUST_BE_DECIMAL)
    return float(text)


def argument(read: Callable[[str], Number], least: Number, most: Number) -> Callable[[str], Number]:
    """Make a `type` for `argparse` that reads a number of a range, and raises with a sentence."""

    def read_number(text: str) -> Number:
        try:
            number = read(text)
        except ValueError as error:
            raise ArgumentTypeError(f"{error}, not {text[:40]!r}") from None
        if not least <= number <= most:
            raise ArgumentTypeError(f"must be from {least} to {most}, not {text[:40]!r}")
        return number

    return read_number
