"""Routes: the pages, their files, and signing in."""

from __future__ import annotations

import logging
from datetime import datetime
from uuid import UUID, uuid5

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from redis.exceptions import RedisError

from agent_relay.api import schemas
from agent_relay.api.console import files
from agent_relay.api.console.codes import LIFE_SECONDS, SignInCodes
from agent_relay.api.dependencies import ApiKeys, BrowserSessions, RedisClient, ServiceSettings
from agent_relay.api.problems import CHALLENGE, Refused, unavailable
from agent_relay.api.requests.identity import Caller
from agent_relay.api.requests.key_cache import KeyCache, KeysUnknown
from agent_relay.api.requests.sessions import check_page
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.shared.api_keys import ApiKey, Scope

log = logging.getLogger(__name__)

LONGEST_SECRET = 512
_USERS = UUID("5f0c6f0e-6f4b-4a39-9d0e-5b4c1f1f5f5a")
"""Namespace of the users of people who sign in without naming one: one for each tenant."""


class _SignInRoute(StrictRoute):
    """Signing in and out: from a page, without a session."""

    async def identify(self, request: Request) -> None:
        """Refuse other sites: they must not sign a browser in or out."""
        check_page(request)


class _AnyScopeRoute(StrictRoute):
    """A route that every valid key opens."""

    def _scopes(self, method: str) -> tuple[Scope, ...]:
        _ = method
        return tuple(Scope)


class SignIn(schemas.Request):
    """The credentials to sign in with: a key, or a code."""

    key: str | None = Field(default=None, min_length=1, max_length=LONGEST_SECRET)
    """An API key."""
    user_id: UUID | None = None
    """The user to act as, with a key."""
    code: str | None = Field(default=None, min_length=1, max_length=LONGEST_SECRET)
    """A sign-in code, instead of a key."""

    @model_validator(mode="after")
    def _one_way(self) -> SignIn:
        if (self.key is None) == (self.code is None) or (self.code is not None and self.user_id is not None):
            raise PydanticCustomError("one_way", "Give either key, with or without user_id, or code")
        return self


class SignedIn(schemas.Resource):
    """Who is signed in."""

    tenant: str
    user_id: UUID
    scopes: list[Scope] | None
    """The scopes of the key; null for everything."""
    expires_at: datetime | None
    """When the session ends; null where a key was shown."""


class SignInCode(schemas.Resource):
    """A link that signs a browser in, once."""

    url: str
    """The path of the page, with the code."""
    expires_in_s: int


router = APIRouter(include_in_schema=False)
_signing_in = APIRouter(include_in_schema=False, route_class=_SignInRoute)
_signed_in = APIRouter(include_in_schema=False, route_class=_AnyScopeRoute)


@router.get("/")
async def chat(request: Request) -> Response:
    """The page to talk to agents."""
    return files.page(request, "index")


@router.get("/batches")
async def batches(request: Request) -> Response:
    """The page to ask about each row of a file."""
    return files.page(request, "batches")


@router.get("/sign-in")
async def sign_in_page(request: Request) -> Response:
    """The page to sign in. The code of a link stands behind `#`: it is not sent with this request."""
    return files.page(request, "sign-in")


@router.get("/console/assets/{name}")
async def read_asset(name: str, request: Request) -> Response:
    """A file that the pages load."""
    found = files.asset(request, name)
    if found is None:
        raise Refused(404, "Not Found.")
    return found


@_signing_in.post("/console/session", status_code=204)
async def sign_in(
    given: SignIn,
    keys: ApiKeys,
    sessions: BrowserSessions,
    redis: RedisClient,
    settings: ServiceSettings,
    request: Request,
) -> Response:
    """Exchange a key or a code for a session."""
    try:
        key, user_id = await _who(given, keys, SignInCodes(redis, settings.names))
        response = Response(status_code=204)
        sessions.begin(response, request, key, user_id)
    except KeysUnknown:
        raise unavailable("The API keys have not been read from the database yet.") from None
    return response


@_signing_in.delete("/console/session", status_code=204)
async def sign_out(sessions: BrowserSessions, request: Request) -> Response:
    """End the session of this browser."""
    response = Response(status_code=204)
    sessions.end(response, request)
    return response


@_signed_in.get("/console/session")
async def read_session(sessions: BrowserSessions, caller: Caller, request: Request) -> SignedIn:
    """Who is signed in."""
    session = sessions.read(request)
    scopes = None if caller.key is None or caller.key.scopes is None else sorted(caller.key.scopes)
    expires_at = None if session is None else session.expires_at
    return SignedIn(tenant=caller.tenant, user_id=caller.user_id, scopes=scopes, expires_at=expires_at)


@_signed_in.post("/console/codes", status_code=201)
async def make_code(redis: RedisClient, settings: ServiceSettings, caller: Caller) -> SignInCode:
    """Make a link that signs a browser in as this caller."""
    try:
        code = await SignInCodes(redis, settings.names).make(caller)
    except (RedisError, OSError) as away:
        raise _no_codes(away) from None
    return SignInCode(url=f"{settings.root_path}/sign-in#code={code}", expires_in_s=LIFE_SECONDS)


async def _who(given: SignIn, keys: KeyCache, codes: SignInCodes) -> tuple[ApiKey, UUID]:
    """Say which key and user a sign-in stands for.

    Raises:
        Refused: 401, the key or the code is not valid; 503, codes cannot be read.
        KeysUnknown: the keys have not been read yet.
    """
    if given.key is not None:
        key = keys.find(given.key.encode(errors="replace"))
        if key is None:
            raise Refused(401, "This key is not valid.", code="key_not_valid", headers=CHALLENGE)
        return key, given.user_id or uuid5(_USERS, key.tenant)
    try:
        taken = await codes.take(given.code or "")
    except (RedisError, OSError) as away:
        raise _no_codes(away) from None
    key = None if taken is None else keys.find_by_reference(taken[0])
    if taken is None or key is None:
        detail = "This link was used before, or has expired. Make another one, or sign in with a key."
        raise Refused(401, detail, code="code_not_valid", headers=CHALLENGE)
    return key, taken[1]


def _no_codes(away: Exception) -> Refused:
    log.warning("console.no_codes error=%r", away)
    return unavailable("Sign-in codes cannot be read: Redis does not answer. Sign in with a key, or try again.")


router.include_router(_signing_in)
router.include_router(_signed_in)
