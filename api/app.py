"""The API, put together: everything is made here and handed on."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from api import agents, dead_letters, docs, health, operator_keys, problems, query, runs, threads, webhooks
from api.asking import WARNING
from api.batches import routes as batches
from api.batches.feeds import BatchFeeds
from api.batches.intake import Intake
from api.cut_short import CutShort
from api.dependencies import Parts
from api.head import Head
from api.idempotency import REPLAYED_HEADER
from api.key_ring import KeyRing
from api.limits import Limits
from api.probes import Probes
from api.relay import Relay
from api.request_id import HEADER as REQUEST_ID_HEADER
from api.request_id import RequestId
from api.root_path import RootPath
from api.stream import rest_of
from api.tickets import Tickets
from shared import database, redis
from shared.event_log import EventLog
from shared.lanes import Lanes
from shared.runs import Admission
from shared.settings import Settings
from shared.start import until_ready
from shared.sweeper import Sweeper
from shared.tasks import run_together, stop
from shared.webhooks import Resolver

log = logging.getLogger(__name__)

_EXPOSED = [
    REQUEST_ID_HEADER,
    REPLAYED_HEADER,
    "Location",
    "Content-Location",
    "Link",
    "ETag",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Preference-Applied",
    WARNING,
]


REDIS_CONNECTIONS = 8
"""Of an API process, however many streams come at once: two for what is announced, the others for commands."""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    settings: Settings = app.state.settings
    engine = database.connect(settings)
    client = redis.connect_few(settings, REDIS_CONNECTIONS)
    event_log, lanes = EventLog(client, settings.names), Lanes(client, settings.names)
    relay = Relay(engine, client, event_log, keepalive_seconds=settings.keepalive_seconds)
    batch_feeds = BatchFeeds(engine, client, settings.names)
    probes = Probes(settings)
    limits = Limits.of(settings, app.state.connections)
    keys = KeyRing(settings, engine, limits.calls.end)
    app.state.parts = Parts(
        settings,
        engine,
        client,
        lanes,
        event_log,
        relay,
        keys,
        Tickets(keys),
        Admission(settings),
        Resolver(settings.webhook_trusted_hosts),
        Intake(settings),
        batch_feeds,
        limits,
        probes,
    )
    sweeper = Sweeper(settings, engine, lanes, event_log)

    async def work() -> None:
        await until_ready(engine)
        await run_together(relay.run(), batch_feeds.run(), sweeper.run(), keys.run())

    background = asyncio.create_task(work())
    background.add_done_callback(_end_process)
    gc.freeze()  # A look at all that was imported would keep the loop for a tenth of a second, now and then.
    try:
        yield
    finally:
        await stop([background])
        await probes.close()
        await client.aclose()
        await engine.dispose()


def _end_process(task: asyncio.Task[None]) -> None:
    """End a process that has lost a vital part by a mistake of ours: another one will do better."""
    if not task.cancelled():
        log.critical("app.lost_a_part", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


class Application(docs.Documented):
    """FastAPI, whose streams are written when all that made them has returned: see `Stream`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await super().__call__(scope, receive, send)
        if (write := rest_of(scope)) is not None:
            await write(send)


def create_app(settings: Settings, connections: int) -> FastAPI:
    """Make the application of a process that may have so many connections; servers and tests run it."""
    app = Application(lifespan=_lifespan, redirect_slashes=False)
    app.state.settings = settings
    app.state.connections = connections
    problems.install(app)
    v1 = APIRouter(prefix="/api/v1")
    routers = (agents, threads, query, runs, batches, webhooks, dead_letters, operator_keys)
    for router in (*(routes.router for routes in routers), runs.streams):
        v1.include_router(router)
    app.include_router(v1)
    app.webhooks.include_router(webhooks.events)
    app.include_router(health.router)
    app.include_router(docs.router)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
            max_age=600,
        )
    app.add_middleware(Head)
    app.add_middleware(CutShort)
    app.add_middleware(RequestId)
    if settings.root_path:
        app.add_middleware(RootPath, root_path=settings.root_path)
    return app
