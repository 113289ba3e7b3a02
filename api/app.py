"""The API, put together: everything is made here and handed on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from api import agents, health, problems, query, runs, threads
from api.dependencies import Parts
from api.relay import Relay
from api.request_id import HEADER as REQUEST_ID_HEADER
from api.request_id import RequestId
from shared import VERSION, database, redis
from shared.event_log import EventLog
from shared.lanes import Lanes
from shared.settings import Settings
from shared.sweeper import Sweeper

log = logging.getLogger(__name__)

_EXPOSED = [REQUEST_ID_HEADER, "Location", "Content-Location", "Link", "ETag", "Retry-After", "Preference-Applied"]

DESCRIPTION = """
Ask a [pydantic-ai](https://ai.pydantic.dev) agent over HTTP, watch its validated answer grow, keep the conversation.

Every call needs two headers: `X-API-Key`, a key of your tenant, and `X-User-ID`, the UUID of your end user, whom threads
and runs belong to. What belongs to somebody else does not exist. Errors are problem documents (RFC 9457): look at `code`.

## The stream

`POST /agent/stream` and `GET /runs/{id}/stream` tell a run's events, as SSE if you accept `text/event-stream`, else as
NDJSON. Every event is an object `{"id", "event", …}`; ids are opaque and only grow.

| event | fields | meaning |
| --- | --- | --- |
| `message_created` | `message: {id, role}`, `run_id` | the query is stored |
| `message_started` | `message_id`, `attempt`, `reason` | a worker begins the answer; above attempt 1 it begins again: forget the earlier partials |
| `tool_call` | `message_id`, `tool_call_id`, `tool_name`, `args` | the agent calls a tool |
| `tool_result` | `message_id`, `tool_call_id`, `tool_name`, `content` | what it returned |
| `text_delta` | `message_id`, `token` | the whole validated partial output so far, as JSON text (of a text agent: the text); it replaces the one before |
| `message_complete` | `message_id`, `usage` | the answer is stored; the last `token` equals it |
| `error` | `error: {code, message, retryable}` | the run failed (in SSE the event is named `run_failed`) |
| `cancelled` | `message_id`, `partial` | the run was cancelled |
| `gap` | | what came before is gone; the next `text_delta` is complete in itself |
| `done` | `status` | the run has ended and everything was told |

A stream that reached the run's end closes with `done`; one without it was cut: resume it with `Last-Event-ID` or `?after=`.
"""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    settings: Settings = app.state.settings
    engine = database.connect(settings)
    client = redis.connect(settings)
    event_log, lanes = EventLog(client), Lanes(client)
    relay = Relay(engine, client, event_log)
    app.state.parts = Parts(settings, engine, client, lanes, event_log, relay)
    background = [
        asyncio.create_task(relay.run()),
        asyncio.create_task(Sweeper(settings, engine, lanes, event_log).run()),
    ]
    try:
        yield
    finally:
        for task in background:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await client.aclose()
        await engine.dispose()


def create_app(settings: Settings) -> FastAPI:
    """Make the application; servers and tests run it."""
    app = FastAPI(
        title="agent-relay",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=_lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json",
    )
    app.state.settings = settings
    problems.install(app)
    v1 = APIRouter(prefix="/api/v1")
    for noun in (agents, threads, query, runs):
        v1.include_router(noun.router)
    app.include_router(v1)
    app.include_router(health.router)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
            max_age=600,
        )
    app.add_middleware(RequestId)
    return app
