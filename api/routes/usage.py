"""Routes: usage and cost of the runs of a tenant, by agent, user, model or day."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BeforeValidator, JsonValue
from pydantic_core import PydanticCustomError
from sqlalchemy import text

from agent_relay.api.dependencies import Database
from agent_relay.api.problems import responses
from agent_relay.api.requests.identity import Caller
from agent_relay.api.requests.pagination import Cursor, Limit, Page, Rows
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.shared.database.typed_rows import columns, read
from agent_relay.shared.schemas import Resource, Usage, usage_of

router = APIRouter(prefix="/usage", tags=["usage"], route_class=StrictRoute)

DAYS = 30
"""Without `from`."""


def _written(value: object) -> object:
    """Take a day only as it is documented: pydantic reads a number as one, too."""
    if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
        raise PydanticCustomError("day", "Give a day such as 2026-01-31")
    return value


Day = Annotated[date, BeforeValidator(_written)]


class By(StrEnum):
    """The groups of a sum."""

    AGENT = "agent"
    USER = "user"
    MODEL = "model"
    DAY = "day"


class UsageOf(Resource):
    """The usage of some runs."""

    key: str | None
    """The agent, the user, the model (null where none answered) or the day (UTC), as was asked."""
    runs: int
    """Runs that have ended, with at least one request to a model."""
    usage: Usage
    """All of them together."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The usage of some runs, as it is read."""

    key: str
    runs: int
    usage: JsonValue


_KINDS = tuple(Usage.model_fields)


def _number(kind: str) -> str:
    """Read a count of a run in SQL; a value that is not a number counts as 0."""
    return f"CASE jsonb_typeof(usage -> '{kind}') WHEN 'number' THEN (usage ->> '{kind}')::numeric END AS {kind}"


def _summed_by(key: str) -> str:
    """Write the query; those that have been erased have left their sums."""
    sums = ", ".join(f"'{kind}', sum({kind})" for kind in _KINDS)
    return f"""
        SELECT {columns(UsageRow, key=key, runs="CAST(sum(runs) AS bigint)", usage=f"jsonb_build_object({sums})")}
        FROM (
            SELECT agent_type, user_id, coalesce(model, '') AS model,
                CAST(finished_at AT TIME ZONE 'UTC' AS date) AS day, 1 AS runs, {", ".join(map(_number, _KINDS))}
            FROM runs
            WHERE tenant = :tenant AND usage <> '{{}}' AND finished_at >= CAST(:first AS date)
                AND finished_at < CAST(:last AS date) + 1
            UNION ALL
            SELECT agent_type, user_id, model, day, runs, {", ".join(_KINDS)}
            FROM past_usage WHERE tenant = :tenant AND day >= CAST(:first AS date) AND day <= CAST(:last AS date)
        ) AS used
        WHERE CAST(:after AS text) IS NULL OR {key} > :after
        GROUP BY 1 ORDER BY 1 LIMIT :limit
    """  # noqa: S608  (constants)


_SUMMED = {
    By.AGENT: text(_summed_by("agent_type")),
    By.USER: text(_summed_by("CAST(user_id AS text)")),
    By.MODEL: text(_summed_by("model")),
    By.DAY: text(_summed_by("CAST(day AS text)")),
}


@router.get("", summary="Sum the usage", response_description="A page of sums.", responses=responses(400, 422))
async def sum_usage(
    database: Database,
    caller: Caller,
    cursor: Cursor,
    by: Annotated[By, Query(description="What to sum by.")] = By.DAY,
    first: Annotated[
        Day | None, Query(alias="from", description=f"The first day (UTC); {DAYS} days up to `to` unless it is given.")
    ] = None,
    last: Annotated[Day | None, Query(alias="to", description="The last day (UTC); today unless it is given.")] = None,
    limit: Limit = 100,
) -> Page[UsageOf]:
    """The usage of all runs of your tenant that ended on some days: of every user, and of erased runs, too.

    A run counts on the day it ended, with all its attempts; one that never reached a model is left out.
    """
    last = last or datetime.now(UTC).date()
    first = first or last - timedelta(days=min(DAYS - 1, (last - date.min).days))
    (after,) = cursor.read(str)
    values = {"tenant": caller.tenant, "first": first, "last": last, "after": after, "limit": limit + 1}
    async with database.connect() as connection:
        rows = read(await connection.execute(_SUMMED[by], values), UsageRow)
    return cursor.page(Rows(rows), limit, _used, lambda row: [row.key])


def _used(row: UsageRow) -> UsageOf:
    return UsageOf(key=row.key or None, runs=row.runs, usage=Usage.model_validate(usage_of(row.usage)))
