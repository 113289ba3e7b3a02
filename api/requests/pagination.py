"""Lists are pages: `{items, next_cursor}`. A cursor is the place where the page before ended.

It is signed for the list and the user that it was made for: a cursor of another list is refused.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict
from sqlalchemy import CursorResult

from agent_relay.api.problems import Refused, unavailable
from agent_relay.api.requests.identity import caller_of
from agent_relay.api.requests.key_cache import KeyCache, KeysUnknown
from agent_relay.api.server.root_path import canonical_path
from agent_relay.shared.database.typed_rows import Kind, read_pairs

Item = TypeVar("Item")

SIGNATURE_BYTES = 12
"""Of a cursor, at its beginning."""

MOST_BYTES = 1 << 20
"""Of a page; the next one goes on."""

Limit = Annotated[
    int, Query(ge=1, le=100, description="How many items at the most; where they are large, a page has fewer.")
]


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"description": "One page of a list."})

    items: list[Item]
    """The items, in the order of the list."""
    next_cursor: str | None
    """Where the next page begins; null on the last."""


def bounded(select: str, size: str, order: str) -> str:
    """Write the query of a page that ends early where its rows are large: after `MOST_BYTES`, and at least one row.

    `select` selects the rows in this `order`, with a limit; `size` is the size of a row in bytes. The column `selected`
    counts the rows that were selected, so that `read_bounded` sees whether it ended early.
    """
    return f"""
        SELECT * FROM (
            SELECT *, count(*) OVER () AS selected, sum({size}) OVER (ORDER BY {order}) - {size} AS bytes_before
            FROM ({select}) AS candidate
        ) AS page WHERE bytes_before < {MOST_BYTES} ORDER BY {order}
    """  # noqa: S608  (constants)


@dataclass(frozen=True, slots=True)
class Bounded:
    """The counts of a `bounded` query beside each row."""

    selected: int
    bytes_before: Decimal


@dataclass(frozen=True, slots=True)
class Rows(Generic[Kind]):
    """The rows of a page, with one more where there is one, unless it ended early because they are large."""

    rows: Sequence[Kind]
    ended_early: bool = False


def read_bounded(result: CursorResult[Any], kind: type[Kind]) -> Rows[Kind]:
    """Read the rows of a `bounded` query."""
    found = read_pairs(result, kind, Bounded)
    ended_early = any(bounds is not None and bounds.selected > len(found) for _, bounds in found)
    return Rows([row for row, _ in found], ended_early)


class PageCursor:
    """The cursor of a request, and what makes the next one."""

    def __init__(self, given: str | None, keys: KeyCache, signed_for: str) -> None:
        """Read the cursor that was `given` to a list; `signed_for` names the list and the user."""
        self._given = given
        self._keys = keys
        self._signed_for = signed_for

    def read(self, *kinds: Callable[[Any], Any]) -> list[Any]:
        """Return the values that the cursor was made of; without one, a None for each.

        Raises:
            Refused: 400, this list never gave out such a cursor; 503, the secret is not known yet.
        """
        if self._given is None:
            return [None] * len(kinds)
        try:
            raw = base64.urlsafe_b64decode(self._given + "=" * (-len(self._given) % 4))
        except ValueError:
            raise _malformed() from None
        values = raw[SIGNATURE_BYTES:]
        if not hmac.compare_digest(self._write(values).encode(), self._given.encode(errors="replace")):
            raise _malformed()
        return [kind(value) for kind, value in zip(kinds, json.loads(values), strict=True)]

    def page(
        self, found: Rows[Kind], limit: int, item: Callable[[Kind], Item], place: Callable[[Kind], list[Any]]
    ) -> Page[Item]:
        """Make a page of at most `limit` rows."""
        shown = found.rows[:limit]
        after = place(shown[-1]) if len(found.rows) > limit or found.ended_early else None
        next_cursor = None if after is None else self._write(json.dumps(after, default=str).encode())
        return Page(items=[item(row) for row in shown], next_cursor=next_cursor)

    def _write(self, values: bytes) -> str:
        try:
            secret = self._keys.ticket_secret
        except KeysUnknown:
            raise unavailable("The secret of cursors has not been read from the database yet.") from None
        signature = hmac.digest(secret, f"cursor {self._signed_for} ".encode() + values, "sha256")[:SIGNATURE_BYTES]
        return base64.urlsafe_b64encode(signature + values).decode().rstrip("=")


async def _cursor(
    request: Request,
    cursor: Annotated[
        str | None,
        Query(description="`next_cursor` of the page before.", json_schema_extra={"pattern": "^[A-Za-z0-9_-]{20,}$"}),
    ] = None,
) -> PageCursor:
    caller = caller_of(request)
    owner = "operator" if caller is None else f"{caller.tenant} {caller.user_id}"
    return PageCursor(cursor, request.app.state.keys, f"{owner} {canonical_path(request)}")


Cursor = Annotated[PageCursor, Depends(_cursor)]
"""The cursor of a list's request."""


def _malformed() -> Refused:
    return Refused(400, "The cursor is not one that this list gave out.", code="malformed_cursor")
