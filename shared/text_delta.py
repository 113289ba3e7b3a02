"""A text delta: the number of characters to drop off the end of a text, and the characters to append."""

from __future__ import annotations

from typing import NamedTuple


class Growth(NamedTuple):
    """Take `drop` characters off the end of the text before, then append."""

    drop: int
    append: str

    def of(self, before: str) -> str:
        """Return the text that grew."""
        return before[: len(before) - self.drop] + self.append


def growth(before: str, after: str) -> Growth | None:
    """Return the delta from `before` to `after`; None if the whole text is better.

    `drop` covers ASCII only, so that it is the same number in every language a client is written in.
    """
    kept = _common_prefix(before, after)
    dropped = before[kept:]
    if not dropped.isascii() or len(dropped) + len(after) - kept >= len(after):
        return None
    return Growth(len(dropped), after[kept:])


def _common_prefix(one: str, other: str) -> int:
    """Measure the common prefix, from the end in doubling steps, then halving: it is the tails that differ."""
    limit = min(len(one), len(other))
    step, low = 16, limit
    while low > 0 and one[:low] != other[:low]:
        low, step = max(0, limit - step), step * 2
    high = limit
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
