"""The finished steps of a run: stored once each by the attempt that holds it, and read by the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.database import transact
from agent_relay.shared.runs.claim import Claim
from agent_relay.shared.schemas import usage_of


@dataclass(frozen=True, slots=True)
class Step:
    """What a finished step adds to a run."""

    agent: str
    """The version of the agent that finished it."""
    messages: str
    """A JSON array in the format of pydantic-ai's `ModelMessagesTypeAdapter`."""
    usage: dict[str, float]
    """The usage of the run by then, of all its attempts."""
    heard: int = 0
    """The `place` of the last message into the run that the model had received by then."""


@dataclass(frozen=True, slots=True)
class FinishedSteps:
    """Steps of one attempt that are stored together."""

    run_id: UUID
    attempt: int
    first_place: int
    """Of the first; the others follow."""
    steps: Sequence[Step]


_ASKED = """
    WITH asked AS MATERIALIZED (
        SELECT * FROM unnest(
            CAST(:run_id AS uuid[]), CAST(:attempt AS int[]), CAST(:place AS int[]), CAST(:messages AS text[]),
            CAST(:usage AS text[]), CAST(:agent AS text[]), CAST(:heard AS int[])
        ) AS asked (run_id, attempt, place, messages, usage, agent, heard)
    )
"""

_KEEP = """
    , kept AS (
        INSERT INTO run_steps (run_id, attempt, place, agent, messages, usage, heard)
        SELECT run_id, asked.attempt, place, agent, messages, CAST(usage AS jsonb), heard
        FROM asked JOIN mine ON mine.id = run_id AND mine.attempt = asked.attempt
        WHERE mine.status = 'running'
        ON CONFLICT (run_id, attempt, place) DO NOTHING
    ), got_on AS (
        UPDATE runs SET crashes = 0 FROM mine JOIN asked ON mine.id = run_id AND mine.attempt = asked.attempt
        WHERE runs.id = mine.id AND mine.status = 'running' AND mine.crashes > 0
    )
    SELECT DISTINCT mine.id FROM mine JOIN asked ON mine.id = run_id AND mine.attempt = asked.attempt
    WHERE mine.status = 'running'
"""
"""A step that is there already was stored by a transaction whose reply was lost. A step that is finished ends the count
of crashes: what crashed before is behind the run."""

_KEEP_STEPS = text(f"""
    {_ASKED}, mine AS MATERIALIZED (
        SELECT id, attempt, status, crashes FROM runs
        WHERE id = :only AND attempt = :only_attempt AND status = 'running' FOR SHARE
    ) {_KEEP}
""")  # noqa: S608  (constants)

_KEEP_STEPS_OF_MANY = text(f"""
    {_ASKED}, mine AS MATERIALIZED (
        SELECT id, attempt, status, crashes FROM runs WHERE id = ANY(CAST(:run_id AS uuid[])) FOR SHARE SKIP LOCKED
    ) {_KEEP}
""")  # noqa: S608  (constants)
"""`FOR SHARE` is the fence: the next claim waits for this transaction, or this one does not see the run as its own."""

_STEPS = text("""
    SELECT agent, messages, usage, heard FROM run_steps
    WHERE run_id = :run_id AND attempt > :after ORDER BY attempt, place
""")

_FORGET_STEPS = text("""
    DELETE FROM run_steps USING runs
    WHERE run_id = :run_id AND runs.id = :run_id AND runs.attempt = :attempt AND runs.status = 'running'
""")


async def keep_steps(database: AsyncEngine, finished: FinishedSteps) -> bool:
    """Store steps that an attempt has finished; False where the run is no longer this attempt's."""
    values = _values([finished]) | {"only": finished.run_id, "only_attempt": finished.attempt}
    return bool(await transact(database, _KEEP_STEPS, values))


async def keep_steps_of_many(database: AsyncEngine, finished: Sequence[FinishedSteps]) -> dict[UUID, bool]:
    """Store steps of several runs in one transaction; returns the runs whose steps were stored.

    It does not wait for locks: a run whose row was locked is left out and may be tried with `keep_steps`.
    """
    return {row.id: True for row in await transact(database, _KEEP_STEPS_OF_MANY, _values(finished))}


async def steps_of(database: AsyncEngine, run_id: UUID, after_attempt: int = 0) -> list[Step]:
    """Read the steps that the later attempts of a run have finished, in their order."""
    rows = await transact(database, _STEPS, {"run_id": run_id, "after": after_attempt})
    return [Step(row.agent, row.messages, usage_of(row.usage), row.heard) for row in rows]


async def forget_steps(database: AsyncEngine, claimed: Claim) -> None:
    """Delete the steps of a run that begins from its query again."""
    async with database.begin() as connection:
        await connection.execute(_FORGET_STEPS, {"run_id": claimed.run_id, "attempt": claimed.attempt})


def _values(finished: Sequence[FinishedSteps]) -> dict[str, Any]:
    rows = [
        (each.run_id, each.attempt, place, step.messages, to_json(step.usage).decode(), step.agent, step.heard)
        for each in finished
        for place, step in zip(count(each.first_place), each.steps, strict=False)
    ]
    names = ("run_id", "attempt", "place", "messages", "usage", "agent", "heard")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
