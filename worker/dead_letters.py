"""The verbs of `python -m worker` for operators: list dead letters, and have them asked again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared import database, logs, redis
from shared.errors import Refusal
from shared.failures import FailureCode
from shared.lanes import Lanes
from shared.runs import dead_letters, requeue
from shared.settings import Settings

PAGE = 1000


async def show(settings: Settings, code: FailureCode | None) -> None:
    """Print the dead letters, a line each, those that died last first."""
    async with _connected(settings) as (engine, _):
        async for row in _all(engine, code):
            print(  # noqa: T201
                f"{row.id} {row.error['code']} finished={row.finished_at:%Y-%m-%dT%H:%M:%SZ} agent={row.agent_type} "
                f"tenant={row.tenant} attempts={row.attempt} crashes={row.crashes}"
            )


async def requeue_some(settings: Settings, run_ids: Sequence[UUID], deadline_seconds: float | None) -> None:
    """Have these asked again, and print what became of each; ends the process with 1 where one is none."""
    async with _connected(settings) as (engine, lanes):
        refused = [run_id for run_id in run_ids if not await _requeue(engine, lanes, run_id, deadline_seconds)]
    if refused:
        raise SystemExit(1)


async def requeue_all(settings: Settings, code: FailureCode | None, deadline_seconds: float | None) -> None:
    """Have all that are dead now asked again, those that died first before the others."""
    async with _connected(settings) as (engine, _):
        run_ids = [row.id async for row in _all(engine, code)]
    await requeue_some(settings, run_ids[::-1], deadline_seconds)


async def _all(engine: AsyncEngine, code: FailureCode | None) -> AsyncGenerator[Any]:
    place = (None, None)
    while rows := await dead_letters(engine, code=code, before=place, limit=PAGE):
        for row in rows:
            yield row
        place = (rows[-1].finished_at, rows[-1].id)


async def _requeue(engine: AsyncEngine, lanes: Lanes, run_id: UUID, deadline_seconds: float | None) -> bool:
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
async def _connected(settings: Settings) -> AsyncGenerator[tuple[AsyncEngine, Lanes]]:
    logs.configure(settings)
    engine, client = database.connect(settings), redis.connect(settings)
    try:
        yield engine, Lanes(client, settings.names)
    except SQLAlchemyError as error:
        raise SystemExit(f"PostgreSQL did not do it; what was printed was done. {error}") from None
    finally:
        await client.aclose()
        await engine.dispose()
