"""The dependencies of routes: each part that a route uses is named in its signature.

`app.py` makes them when the process starts, each an attribute of the application's state. Dependencies are coroutine
functions: FastAPI runs a plain function in a thread, which costs more than its work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.answering import Answerer
from agent_relay.api.batches.feed import BatchFeeds
from agent_relay.api.batches.upload import BatchUpload
from agent_relay.api.cancellation import Canceller
from agent_relay.api.files import FileUploads
from agent_relay.api.operations.board import Board
from agent_relay.api.probes import KnownForAWhile, Probes
from agent_relay.api.requests.key_cache import KeyCache
from agent_relay.api.requests.rate_limits import OpenCalls
from agent_relay.api.requests.sessions import Sessions
from agent_relay.api.requests.tickets import Tickets
from agent_relay.api.requests.user_tokens import UserTokens
from agent_relay.api.streaming.relay import Relay
from agent_relay.api.submission import Submitter
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.settings import Settings
from agent_relay.shared.webhooks import Resolver


def _state(name: str) -> Any:
    """Depend on an attribute of the application's state."""

    async def read(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(read)


async def _call_limits(request: Request) -> OpenCalls:
    return request.app.state.limits.calls


async def _upload_limits(request: Request) -> OpenCalls:
    return request.app.state.limits.uploads


async def _url_of(request: Request) -> Callable[[str, object], str]:
    root_path = request.app.state.settings.root_path
    return lambda noun, id_: f"{root_path}/api/v1/{noun}/{id_}"


ServiceSettings = Annotated[Settings, _state("settings")]
Database = Annotated[AsyncEngine, _state("database")]
RedisClient = Annotated[Redis, _state("redis")]
Queue = Annotated[RunQueue, _state("queue")]
RunLog = Annotated[EventLog, _state("event_log")]
RunRelay = Annotated[Relay, _state("relay")]
ResultFeeds = Annotated[BatchFeeds, _state("batch_feeds")]
Submit = Annotated[Submitter, _state("submitter")]
TakeAnswers = Annotated[Answerer, _state("answerer")]
Cancel = Annotated[Canceller, _state("canceller")]
Files = Annotated[FileUploads, _state("files")]
Uploads = Annotated[BatchUpload, _state("uploads")]
AdmissionLimits = Annotated[Admission, _state("admission")]
WebhookHosts = Annotated[Resolver, _state("resolver")]
ApiKeys = Annotated[KeyCache, _state("keys")]
StreamTickets = Annotated[Tickets, _state("tickets")]
Tokens = Annotated[UserTokens, _state("user_tokens")]
BrowserSessions = Annotated[Sessions, _state("sessions")]
OperationsBoard = Annotated[Board, _state("board")]
CallLimits = Annotated[OpenCalls, Depends(_call_limits)]
"""How many calls of a user may wait at once."""
UploadLimits = Annotated[OpenCalls, Depends(_upload_limits)]
"""How many batches and files of a user may be uploaded at once."""
ServerProbes = Annotated[Probes, _state("probes")]
MetricsPage = Annotated[KnownForAWhile[bytes], _state("metrics_page")]
UrlOf = Annotated[Callable[[str, object], str], Depends(_url_of)]
"""Makes the path of a resource as a caller reaches it, such as `/api/v1/runs/<id>`, behind `ROOT_PATH`."""
