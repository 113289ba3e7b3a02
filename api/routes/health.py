"""Routes outside `/api/v1`, for operators and their machines: no key is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from agent_relay.api.dependencies import MetricsPage, ServerProbes
from agent_relay.api.probes import Probes
from agent_relay.api.problems import ON_EVERY_CALL, database_away, problem_responses
from agent_relay.api.streaming.relay import Relay
from agent_relay.shared.database import is_away
from agent_relay.shared.database.tables import IS_UNFINISHED
from agent_relay.shared.metrics import REGISTRY
from agent_relay.shared.schemas import Resource
from agent_relay.shared.unavailable import Trouble

router = APIRouter(tags=["health"])


class Readiness(Resource):
    """Whether the process can do its work."""

    status: Literal["ok", "degraded"]
    """`degraded` while something is away, or takes no writes, that it can do without."""
    degraded: list[str]
    """The servers that are away."""
    reasons: dict[str, str] | None = None
    """Why, in a word each."""


_QUEUE = text(f"""
    SELECT pool, lane, status, count(*) AS runs,
        coalesce(extract(epoch FROM now() - min(greatest(created_at, start_at))), 0) AS oldest_seconds
    FROM runs WHERE {IS_UNFINISHED} AND NOT starts_later GROUP BY pool, lane, status
""")  # noqa: S608  (a constant)

_WORKERS = text("""
    SELECT pool, count(*) AS workers, sum(slots) AS slots FROM workers
    WHERE ended_at IS NULL AND lease_until > now() AND NOT draining GROUP BY pool
""")


@router.get(
    "/health/live",
    summary="Is the process alive?",
    response_description="It is.",
    responses=problem_responses(*ON_EVERY_CALL),
)
async def live() -> dict[str, str]:
    """Always 200 while the process answers at all."""
    return {"status": "ok"}


@router.get(
    "/health/ready",
    summary="Should it get traffic?",
    response_model=Readiness,
    response_model_exclude_none=True,
    response_description="It should.",
    responses=problem_responses(*ON_EVERY_CALL),
)
async def ready(probes: ServerProbes) -> Readiness:
    """503 while PostgreSQL or its tables cannot be written. Without Redis runs are still accepted: 200, degraded."""
    if trouble := await probes.postgresql.trouble():
        raise database_away(trouble)
    if (trouble := await probes.redis.trouble()) is None:
        return Readiness(status="ok", degraded=[])
    return Readiness(status="degraded", degraded=["redis"], reasons={"redis": trouble})


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    response_description="The metrics.",
    responses=problem_responses(*ON_EVERY_CALL),
)
async def metrics(page: MetricsPage) -> Response:
    """Queue, workers and followers within the last second, in Prometheus' text format; without PostgreSQL, the rest."""
    return Response(await page.get(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def exposition(probes: Probes, relay: Relay) -> bytes:
    """Write the metrics of a process."""
    queue: Sequence[Any] = []
    workers: Sequence[Any] = []
    troubles = {"postgresql": await probes.postgresql.trouble(), "redis": await probes.redis.trouble()}
    if troubles["postgresql"] is not Trouble.UNREACHABLE:
        try:
            async with probes.counting.connect() as connection:
                queue = (await connection.execute(_QUEUE)).all()
                workers = (await connection.execute(_WORKERS)).all()
        except SQLAlchemyError as away:
            if not is_away(away):
                raise
    return _exposition(queue, workers, relay, troubles)


def _exposition(queue: Any, workers: Any, relay: Relay, troubles: Mapping[str, Trouble | None]) -> bytes:
    registry = CollectorRegistry()
    writable = Gauge(
        "agent_relay_server_writable",
        "Whether a write to this server works just now; else the reason says why not.",
        ["server", "reason"],
        registry=registry,
    )
    for server, trouble in troubles.items():
        writable.labels(server, trouble or "").set(trouble is None)
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
