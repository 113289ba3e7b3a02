"""Routes of the operations page, and how an operator signs in to it: with a key of OPERATOR_KEYS."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from agent_relay.api import schemas
from agent_relay.api.console import files
from agent_relay.api.dependencies import BrowserSessions, Database, OperationsBoard, RunLog, ServiceSettings
from agent_relay.api.operations.board import Watcher
from agent_relay.api.operations.timeline import Story, story
from agent_relay.api.problems import CHALLENGE, Refused, unavailable
from agent_relay.api.requests.identity import Operator
from agent_relay.api.requests.key_cache import KeysUnknown
from agent_relay.api.requests.sessions import check_page
from agent_relay.api.requests.validation import OperatorRoute, StrictRoute
from agent_relay.api.schemas import RunId
from agent_relay.api.streaming.response import Stream
from agent_relay.shared.key_format import hash_key

LONGEST_SECRET = 512


class _SignInRoute(StrictRoute):
    """Signing in and out: from a page, without a session."""

    async def identify(self, request: Request) -> None:
        """Refuse other sites: they must not sign a browser in or out."""
        check_page(request)


class OperatorSignIn(schemas.Request):
    """How an operator signs in."""

    key: str = Field(min_length=1, max_length=LONGEST_SECRET)
    """One of `OPERATOR_KEYS`."""


class SignedInOperator(schemas.Resource):
    """Who is signed in."""

    operator: str
    expires_at: datetime | None
    """When the session ends; null where a key was shown."""


router = APIRouter(include_in_schema=False)
_signing_in = APIRouter(include_in_schema=False, route_class=_SignInRoute)
_operating = APIRouter(include_in_schema=False, route_class=OperatorRoute)


@router.get("/ops")
async def operations(request: Request) -> Response:
    """The page that shows the service to its operators."""
    return files.page(request, "ops")


@_signing_in.post("/console/operator-session", status_code=204)
async def sign_in(
    given: OperatorSignIn, settings: ServiceSettings, sessions: BrowserSessions, request: Request
) -> Response:
    """Exchange the key of an operator for a session."""
    key_hash = hash_key(given.key.encode(errors="replace"))
    if key_hash not in settings.operator_keys:
        detail = "This is not the key of an operator: OPERATOR_KEYS of the service says which are."
        raise Refused(401, detail, code="key_not_valid", headers=CHALLENGE)
    response = Response(status_code=204)
    try:
        sessions.begin_operator(response, request, key_hash)
    except KeysUnknown:
        raise unavailable("The secret of sessions has not been read from the database yet.") from None
    return response


@_signing_in.delete("/console/operator-session", status_code=204)
async def sign_out(sessions: BrowserSessions, request: Request) -> Response:
    """End the session of this browser."""
    response = Response(status_code=204)
    sessions.end_operator(response, request)
    return response


@_operating.get("/console/operator-session")
async def read_session(sessions: BrowserSessions, operator: Operator, request: Request) -> SignedInOperator:
    """Who is signed in."""
    session = sessions.read_operator(request)
    return SignedInOperator(operator=operator, expires_at=None if session is None else session.expires_at)


@_operating.get("/console/operations")
async def watch(board: OperationsBoard, sessions: BrowserSessions, _operator: Operator, request: Request) -> Response:
    """Stream the service as it is: `history` with the plots once a minute, and `now` with each tick."""
    session = sessions.read_operator(request)
    expires_at_ms = None if session is None else int(session.expires_at.timestamp() * 1000)
    return Stream(Watcher(board, expires_at_ms), {})


@_operating.get("/console/operations/runs/{run_id}")
async def read_story(run_id: RunId, database: Database, event_log: RunLog, _operator: Operator) -> Story:
    """The events of a run, of any user; without its query and answer."""
    return await story(database, event_log, run_id)


router.include_router(_signing_in)
router.include_router(_operating)
