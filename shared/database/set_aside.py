"""Statements over many rows, of which one may make them fail: it is left out for a while, the others are served."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.database import is_about_rows, transact
from agent_relay.shared.database.typed_rows import Kind

ASIDE_SECONDS = 60.0
"""The cause may be removed meanwhile."""
MOST_AT_ONCE = 20
"""After this number of failing rows, the others wait for the next time: a statement that fails for all is slow."""


def among(name: str) -> str:
    """Say in SQL which rows a statement may take: those of the column of ids that `Aside.run` lets it."""
    return f"""({name} <> ALL(CAST(:aside AS uuid[]))
        AND (CAST(:only AS uuid[]) IS NULL OR {name} = ANY(CAST(:only AS uuid[]))))"""


@dataclass(frozen=True, slots=True)
class NoRows:
    """The class of the rows of a statement that returns none."""


class Aside:
    """The rows that one statement leaves alone for now, in this process."""

    def __init__(self) -> None:
        self._until: dict[UUID, float] = {}

    async def run(
        self,
        database: AsyncEngine,
        statement: TextClause,
        candidates: TextClause,
        values: Mapping[str, Any],
        kind: type[Kind],
    ) -> list[Kind]:
        """Run a statement over the rows that are not aside; where one makes it fail, over each of the candidates alone.

        Both statements choose their rows with `among`; the second returns their `id`. Returns the rows of the first,
        read into the class.
        """
        now = time.monotonic()
        self._until = {row_id: until for row_id, until in self._until.items() if until > now}
        some = {**values, "aside": list(self._until), "only": None}
        try:
            return await transact(database, statement, some, kind)
        except DBAPIError as error:
            if not is_about_rows(error):
                raise
        served: list[Kind] = []
        failures = 0
        for row in await transact(database, candidates, some):
            try:
                served += await transact(database, statement, {**some, "only": [row.id]}, kind)
            except DBAPIError as error:
                if not is_about_rows(error):
                    raise
                refuse(BadInput.ROW, f"row {row.id}", error.orig)
                self._until[row.id] = now + ASIDE_SECONDS
                failures += 1
                if failures == MOST_AT_ONCE:
                    break
        return served
