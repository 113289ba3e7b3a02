"""Lists are pages: `{items, next_cursor}`. A cursor says where the page before ended, and nothing of the database."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict

from api.problems import Refused

Item = TypeVar("Item")

BIGINT = 63
"""Bits of the largest number in the database."""

MOST_BYTES = 2 << 20
"""Of a page; the next one goes on."""

Limit = Annotated[
    int, Query(ge=1, le=100, description="How many items at the most; where they are large, a page has fewer.")
]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.")]


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"description": "One page of a list."})

    items: list[Item]
    """The items, in the order of the list."""
    next_cursor: str | None
    """Where the next page begins; null on the last."""


def bounded(select: str, size: str, order: str) -> str:
    """Write the query of a page that ends early where its rows are large: after `MOST_BYTES`, and at least one row.

    `select` selects the rows in this `order`, with a limit; `size` says how many bytes a row has. The column `selected`
    counts the rows that were selected, so that `page` sees whether it ended early.
    """
    return f"""
        SELECT * FROM (
            SELECT *, count(*) OVER () AS selected, sum({size}) OVER (ORDER BY {order}) - {size} AS bytes_before
            FROM ({select}) AS candidate
        ) AS page WHERE bytes_before < {MOST_BYTES} ORDER BY {order}
    """  # noqa: S608  (constants)


def page(rows: Sequence[Any], limit: int, item: Callable[[Any], Item], place: Callable[[Any], list[Any]]) -> Page[Item]:
    """Make a page of at most `limit` rows, out of one more where there is one; `bounded` rows may be fewer."""
    shown = rows[:limit]
    ended_early = bool(rows) and getattr(rows[0], "selected", 0) > len(rows)
    after = place(shown[-1]) if len(rows) > limit or ended_early else None
    return Page(items=[item(row) for row in shown], next_cursor=None if after is None else _write(after))


def place_of(cursor: str | None, *kinds: Callable[[Any], Any]) -> list[Any]:
    """Read a cursor back into the values it was made of; without one, as many Nones.

    Raises:
        Refused: 400, this service never gave out such a cursor.
    """
    if cursor is None:
        return [None] * len(kinds)
    try:
        read = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        values = [kind(value) for kind, value in zip(kinds, read, strict=True)]
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise _malformed() from None
    if _write(values) != cursor or any(isinstance(value, int) and value.bit_length() > BIGINT for value in values):
        raise _malformed()
    return values


def _write(values: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(values, default=_text).encode()).decode().rstrip("=")


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _malformed() -> Refused:
    return Refused(400, "The cursor is not one that this list gave out.", code="malformed_cursor")
