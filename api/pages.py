"""Lists are pages: `{items, next_cursor}`. A cursor says where the page before ended, and nothing of the database."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict

from api.problems import Refused

Item = TypeVar("Item")

Limit = Annotated[int, Query(ge=1, le=100, description="How many items at the most.")]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.")]


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    items: list[Item]
    """The items, in the order of the list."""
    next_cursor: str | None
    """Where the next page begins; null on the last."""


def page(rows: Sequence[Any], limit: int, item: Callable[[Any], Item], place: Callable[[Any], list[Any]]) -> Page[Item]:
    """Make a page of at most `limit` rows, out of one more where there is one."""
    shown = rows[:limit]
    after = place(shown[-1]) if len(rows) > limit else None
    return Page(items=[item(row) for row in shown], next_cursor=None if after is None else _write(after))


def place_of(cursor: str | None, *kinds: Callable[[Any], Any]) -> list[Any]:
    """Read a cursor back into the values it was made of; without one, as many Nones.

    Raises:
        Refused: 400, this service never gave out such a cursor.
    """
    if cursor is None:
        return [None] * len(kinds)
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return [kind(value) for kind, value in zip(kinds, values, strict=True)]
    except (ValueError, TypeError, binascii.Error, RecursionError, OverflowError):
        raise Refused(400, "The cursor is not one that this list gave out.", code="malformed_cursor") from None


def _write(values: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(values, default=str).encode()).decode().rstrip("=")
