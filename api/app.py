"""The API, put together: everything is made here and handed on."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from agent_relay.api import openapi, problems
from agent_relay.api.answering import Answerer
from agent_relay.api.batches.feed import BatchFeeds
from agent_relay.api.batches.upload import BatchUpload
from agent_relay.api.cancellation import Canceller
from agent_relay.api.console import operations
from agent_relay.api.console import routes as console
from agent_relay.api.erasing import Eraser
from agent_relay.api.files import FileUploads
from agent_relay.api.operations.board import Board
from agent_relay.api.operations.recorder import Recorder
from agent_relay.api.probes import KnownForAWhile, Probes
from agent_relay.api.protocols.ag_ui import routes as ag_ui
from agent_relay.api.protocols.ai_sdk import routes as ai_sdk
from agent_relay.api.protocols.openai import router as openai
from agent_relay.api.request_id import HEADER as REQUEST_ID_HEADER
from agent_relay.api.request_id import RequestId
from agent_relay.api.requests.idempotency import REPLAYED_HEADER
from agent_relay.api.requests.identity_provider import IdentityProvider
from agent_relay.api.requests.key_cache import KeyCache
from agent_relay.api.requests.rate_limits import Limits
from agent_relay.api.requests.sessions import Sessions
from agent_relay.api.requests.tickets import Tickets
from agent_relay.api.requests.user_tokens import UserTokens
from agent_relay.api.routes import (
    agent,
    agents,
    api_keys,
    batches,
    dead_letters,
    files,
    health,
    runs,
    schedules,
    threads,
    usage,
    user_tokens,
    users,
    webhooks,
)
from agent_relay.api.schedules.ticker import Ticker
from agent_relay.api.server.head import Head
from agent_relay.api.server.root_path import RootPath
from agent_relay.api.server.shutdown import CutShort
from agent_relay.api.streaming.relay import Relay
from agent_relay.api.streaming.response import write_rest
from agent_relay.api.submission import WARNING, Submitter
from agent_relay.shared import database, redis
from agent_relay.shared.database.hang_detector import HangDetector
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.files import FileLimits
from agent_relay.shared.maintenance.sweeper import Sweeper
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.runs.spending import SpendLimit
from agent_relay.shared.settings import Settings
from agent_relay.shared.startup_checks import until_ready
from agent_relay.shared.tasks import run_together, stop
from agent_relay.shared.webhooks import Resolver

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
    *openai.HEADERS,
    WARNING,
]


REDIS_CONNECTIONS = 8
"""Of an API process, however many streams come at once: two for subscriptions, the others for commands."""
FIRST_KEYS_SECONDS = 2.0
"""How long a process that starts waits for its keys; without a database it listens then, and answers 503."""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    settings: Settings = app.state.settings
    pulse = HangDetector()
    engine = database.connect(settings, pulse=pulse)
    client = redis.connect_few(settings, REDIS_CONNECTIONS)
    event_log, lanes = EventLog(client, settings.names), RunQueue(client, settings.names)
    relay = Relay(engine, client, event_log, keepalive_seconds=settings.keepalive_seconds)
    batch_feeds = BatchFeeds(engine, client, settings.names)
    probes = Probes(settings, pulse)
    limits = Limits.of(settings, app.state.connections)
    keys = KeyCache(settings, engine, limits.calls.end, limits.calls.end_of_tokens)
    admission, resolver = Admission(settings, SpendLimit(settings)), Resolver(settings.webhook_trusted_hosts)
    canceller = Canceller(settings, engine, client, lanes, event_log)
    state = app.state
    state.database, state.redis, state.queue, state.event_log = engine, client, lanes, event_log
    state.keys, state.tickets, state.sessions = keys, Tickets(keys), Sessions(keys, settings.operator_keys)
    state.user_tokens = UserTokens(keys)
    provider = state.identity_provider = None if settings.jwt_issuer is None else IdentityProvider(settings)
    state.admission, state.resolver, state.limits = admission, resolver, limits
    state.canceller = canceller
    state.answerer = Answerer(settings, engine, lanes, event_log)
    state.submitter = Submitter(settings, engine, lanes, admission, resolver, canceller)
    state.uploads, state.files = BatchUpload(settings), FileUploads(engine, FileLimits.of(settings))
    state.probes, state.metrics_page = probes, KnownForAWhile(lambda: health.exposition(probes, relay))
    state.batch_feeds, state.relay = batch_feeds, relay  # In this order: a signal to stop looks for the second.
    board = state.board = Board(engine, settings.lease_seconds)
    recorder = Recorder(engine, limits.calls.__len__)
    sweeper = Sweeper(settings, engine, lanes, event_log)
    ticker = Ticker(settings, engine, lanes, admission, keys, canceller)
    eraser = Eraser(engine, event_log, canceller)

    async def work() -> None:
        await until_ready(engine)
        of_pages = [board.run(), recorder.run()] if settings.pages else []
        of_provider = [] if provider is None else [provider.run()]
        await run_together(
            relay.run(),
            batch_feeds.run(),
            sweeper.run(),
            ticker.run(),
            eraser.run(),
            keys.run(),
            *of_provider,
            *of_pages,
        )

    background = asyncio.create_task(work())
    background.add_done_callback(_end_process)
    app.openapi()  # It also makes what FastAPI makes of a route when it is first asked for: no request waits for that.
    gc.collect()
    gc.freeze()  # A look at all that was made so far would keep the loop for a tenth of a second, now and then.
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_KEYS_SECONDS):
                await keys.first_read.wait()
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


class Application(openapi.Documented):
    """FastAPI, whose streams are written when the code that made them has returned: see `Stream`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await super().__call__(scope, receive, send)
        await write_rest(scope, send)


def create_app(settings: Settings, connections: int) -> FastAPI:
    """Make the application of a process with this number of connections at most; servers and tests run it."""
    app = Application(lifespan=_lifespan, redirect_slashes=False)
    app.state.settings = settings
    app.state.connections = connections
    problems.install(app, openai.ERRORS)
    v1 = APIRouter(prefix="/api/v1")
    of_users = (agents, threads, agent, runs, batches, files, schedules, users, usage, webhooks, user_tokens)
    routers = (*of_users, dead_letters, api_keys)
    for router in (*(routes.router for routes in routers), runs.streams, ag_ui.router, ai_sdk.router):
        v1.include_router(router)
    app.include_router(v1)
    app.include_router(openai.router)
    app.webhooks.include_router(webhooks.events)
    app.include_router(health.router)
    app.include_router(openapi.router)
    if settings.pages:
        app.include_router(console.router)
        app.include_router(operations.router)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
            max_age=600,
        )
    app.add_middleware(Head)
    app.add_middleware(CutShort)
    if settings.root_path:
        app.add_middleware(RootPath, root_path=settings.root_path)
    app.add_middleware(RequestId)
    return app
