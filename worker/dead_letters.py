"""`agent-relay dead-letters` and `agent-relay requeue`, for operators: list dead letters, and requeue them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared import database, logs, redis
from agent_relay.shared.errors import Refusal
from agent_relay.shared.failure_codes import FailureCode
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.dead_letters import DeadLetterRow, dead_letters, requeue
from agent_relay.shared.schemas import error_of
from agent_relay.shared.settings import Settings

PAGE = 1000


async def show(settings: Settings, code: FailureCode | None) -> None:
    """Print the dead letters, a line each, those that died last first."""
    async with _connected(settings) as (engine, _):
        async for row in _all(engine, code):
            print(  # noqa: T201
                f"{row.id} {error_of(row.error).code} finished={row.finished_at:%Y-%m-%dT%H:%M:%SZ} "
                f"agent={row.agent_type} tenant={row.tenant} attempts={row.attempt} crashes={row.crashes}"
            )


async def requeue_some(settings: Settings, run_ids: Sequence[UUID], deadline_seconds: float | None) -> None:
    """Requeue these, and print the result of each; ends the process with 1 if one is no dead letter."""
    async with _connected(settings) as (engine, lanes):
        refused = [run_id for run_id in run_ids if not await _requeue(engine, lanes, run_id, deadline_seconds)]
    if refused:
        raise SystemExit(1)


async def requeue_all(settings: Settings, code: FailureCode | None, deadline_seconds: float | None) -> None:
    """Requeue all dead letters of now, in the order in which they failed."""
    async with _connected(settings) as (engine, _):
        run_ids = [row.id async for row in _all(engine, code)]
    await requeue_some(settings, run_ids[::-1], deadline_seconds)


async def _all(engine: AsyncEngine, code: FailureCode | None) -> AsyncGenerator[DeadLetterRow]:
    place = (None, None)
    while rows := await dead_letters(engine, code=code, before=place, limit=PAGE):
        for row in rows:
            yield row
        place = (rows[-1].finished_at, rows[-1].id)


async def _requeue(engine: AsyncEngine, lanes: RunQueue, run_id: UUID, deadline_seconds: float | None) -> bool:
    try:
        requeued = await requeue(engine, run_id, deadline_seconds)
    except Refusal as refusal:
        print(f"{run_id} {refusal}")  # noqa: T201
        return False
    if requeued.ring is not None:
        await lanes.ring([requeued.ring])
    print(f"{run_id} {'requeued' if requeued.ring else 'already requeued'} as {requeued.run_id}")  # noqa: T201
    return True


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncGenerator[tuple[AsyncEngine, RunQueue]]:
    logs.configure(settings)
    engine, client = database.connect(settings), redis.connect(settings)
    try:
        yield engine, RunQueue(client, settings.names)
    except SQLAlchemyError as error:
        raise SystemExit(f"Database error; the runs listed above were requeued. {error}") from None
    finally:
        await client.aclose()
        await engine.dispose()
