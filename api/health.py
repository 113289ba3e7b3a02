"""Routes outside `/api/v1`, for operators and their machines: no key is asked for."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.dependencies import Parts, Service
from api.problems import problem_responses, unavailable
from api.relay import Relay
from shared.database import SCHEMA, schema_of
from shared.metrics import REGISTRY
from shared.resources import Resource

log = logging.getLogger(__name__)

router = APIRouter(tags=["health"])

PATIENCE_SECONDS = 2


class Readiness(Resource):
    """Whether the process can do its work."""

    status: Literal["ok", "degraded"]
    """`degraded` while something is away that it can do without."""
    degraded: list[str]
    """What is away."""


_QUEUE = text("""
    SELECT pool, lane, status, count(*) AS runs,
        coalesce(extract(epoch FROM now() - min(created_at)), 0) AS oldest_seconds
    FROM runs WHERE status IN ('queued', 'running') GROUP BY pool, lane, status
""")

_WORKERS = text("""
    SELECT pool, count(*) AS workers, sum(slots) AS slots FROM workers
    WHERE ended_at IS NULL AND lease_until > now() AND NOT draining GROUP BY pool
""")


@router.get("/health/live", summary="Is the process alive?", response_description="It is.")
async def live() -> dict[str, str]:
    """Always 200 while the process answers at all."""
    return {"status": "ok"}


@router.get(
    "/health/ready",
    summary="Should it get traffic?",
    response_model=Readiness,
    response_description="It should.",
    responses=problem_responses(503),
)
async def ready(service: Service) -> Readiness:
    """503 without PostgreSQL or its tables. Without Redis runs are still accepted: 200, degraded."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            schema = await schema_of(service.database)
    except (SQLAlchemyError, OSError) as away:
        log.warning("health.database_away error=%r", away)
        raise unavailable() from None
    if schema is None or schema < SCHEMA:
        raise unavailable("The database has not been migrated: run `python -m shared.migrations`.")
    degraded = [] if await _redis_answers(service) else ["redis"]
    return Readiness(status="degraded" if degraded else "ok", degraded=degraded)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    response_description="The metrics.",
    responses=problem_responses(503),
)
async def metrics(service: Service) -> Response:
    """Queue, workers and followers as they are now, in Prometheus' text format."""
    async with service.database.connect() as connection:
        queue = (await connection.execute(_QUEUE)).all()
        workers = (await connection.execute(_WORKERS)).all()
    return Response(_exposition(queue, workers, service.relay), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _redis_answers(service: Parts) -> bool:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return bool(await service.redis.ping())
    except (RedisError, OSError) as away:
        log.warning("health.redis_away error=%r", away)
        return False


def _exposition(queue: Any, workers: Any, relay: Relay) -> bytes:
    registry = CollectorRegistry()
    runs = Gauge("agent_relay_runs", "Unfinished runs.", ["pool", "lane", "status"], registry=registry)
    oldest = Gauge(
        "agent_relay_oldest_run_seconds",
        "Age of the oldest unfinished run.",
        ["pool", "lane", "status"],
        registry=registry,
    )
    for row in queue:
        runs.labels(row.pool, row.lane, row.status).set(row.runs)
        oldest.labels(row.pool, row.lane, row.status).set(row.oldest_seconds)
    alive = Gauge("agent_relay_workers", "Workers that claim runs.", ["pool"], registry=registry)
    slots = Gauge("agent_relay_worker_slots", "Runs that they can answer at once.", ["pool"], registry=registry)
    for row in workers:
        alive.labels(row.pool).set(row.workers)
        slots.labels(row.pool).set(row.slots)
    followed = Gauge("agent_relay_followed_runs", "Unfinished runs that this process relays.", registry=registry)
    followed.set(len(relay))
    entries = Counter("agent_relay_entries", "Log entries, by the way they came here.", ["way"], registry=registry)
    entries.labels("live").inc(relay.live)
    entries.labels("read").inc(relay.read)
    return generate_latest(registry) + generate_latest(REGISTRY)
