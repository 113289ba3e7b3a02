"""Tokens of users: the right to act as one user for a while, for browsers and apps. Signed (JWT), not stored.

A token is made with an API key. It is valid for no longer than that key and allows no more; it may be restricted to
threads, to agents and to reading.
"""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import jwt
from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import text

from agent_relay.api.problems import Refused
from agent_relay.api.requests.key_cache import KeyCache
from agent_relay.shared.api_keys import ApiKey
from agent_relay.shared.errors import NotFound

LONGEST_TOKEN = 16_384
"""Characters of any token that is looked at; the longest of ours has half of it."""
_AUDIENCE = "agent-relay user token"
_TYPE = "agent-relay-user+jwt"
_ALGORITHM = "HS256"

_OF_TENANT = ("/user-tokens", "/usage", "/webhooks/secret", "/console/")
"""Paths of calls that concern the whole tenant, or make rights that outlive a token: they need an API key."""
_CHAT = "/ai-sdk/chat"
_ABOUT_THREADS = {
    *(
        ("GET", path)
        for path in ("/agents", "/threads", "/runs", f"{_CHAT}/{{chat}}/stream", f"{_CHAT}/{{chat}}/messages")
    ),
    *(("POST", path) for path in ("/runs", "/agent/query", "/agent/stream", _CHAT)),
}
"""Calls whose path has neither thread nor run, and that check the threads of a token themselves."""
_PREFIX = "/api/v1"

_THREAD_OF_RUN = text("SELECT thread_id FROM runs WHERE id = :id")


@dataclass(frozen=True, slots=True)
class Token:
    """The rights in a token, beside its key and its user."""

    issued_at: float
    """Seconds since 1970, by the clock of the database."""
    expires_at: float
    """Seconds since 1970."""
    threads: frozenset[UUID] | None = None
    """The only threads that exist for it; None for all of its user."""
    read_only: bool = False

    @property
    def seconds_left(self) -> float:
        """How long it is still valid."""
        return max(self.expires_at - time.time(), 0)


class _Claims(BaseModel):
    """The content of a token."""

    model_config = ConfigDict(frozen=True)

    sub: UUID
    key: str
    iat: float
    exp: float
    threads: frozenset[UUID] | None = None
    agents: frozenset[str] | None = None
    read_only: bool = False


class UserTokens:
    """Signs and reads tokens, with a secret that all API processes share."""

    def __init__(self, keys: KeyCache) -> None:
        self._keys = keys

    def sign(
        self,
        key: ApiKey,
        user_id: UUID,
        issued_at: datetime,
        seconds: float,
        *,
        threads: Collection[UUID] | None,
        agents: Collection[str] | None,
        read_only: bool,
    ) -> str:
        """Write a token; None stands for all. Raises as `KeyCache.ticket_secret` does."""
        claims: dict[str, Any] = {
            "aud": _AUDIENCE,
            "sub": str(user_id),
            "key": base64.urlsafe_b64encode(key.reference).decode(),
            "iat": issued_at.timestamp(),
            "exp": issued_at.timestamp() + seconds,
        }
        if threads is not None:
            claims["threads"] = sorted(map(str, threads))
        if agents is not None:
            claims["agents"] = sorted(agents)
        if read_only:
            claims["read_only"] = True
        return jwt.encode(claims, self._secret, _ALGORITHM, {"typ": _TYPE})

    def read(self, token: str) -> tuple[ApiKey, UUID, Token] | None:
        """Identify the user of a token, with the key narrowed to the rights of the token; None if it is not valid.

        Raises:
            KeysUnknown: the keys have not been read yet.
        """
        try:
            decoded = jwt.decode_complete(
                token,
                self._secret,
                [_ALGORITHM],
                {"require": ["exp", "iat", "sub", "aud"], "verify_iat": False, "strict_aud": True},
                audience=_AUDIENCE,
            )
            claims = _Claims.model_validate(decoded["payload"])
        except (jwt.PyJWTError, ValidationError, RecursionError):
            return None
        key = self._keys.find_by_reference(base64.urlsafe_b64decode(claims.key))
        if decoded["header"].get("typ") != _TYPE or key is None or claims.exp <= time.time():
            return None
        if self._keys.is_void(key.tenant, claims.sub, claims.iat):
            return None
        if claims.agents is not None:
            key = replace(key, agents=claims.agents if key.agents is None else key.agents & claims.agents)
        return key, claims.sub, Token(claims.iat, claims.exp, claims.threads, claims.read_only)

    @property
    def _secret(self) -> bytes:
        return hmac.digest(self._keys.ticket_secret, b"user token\0", "sha256")


async def check_token(request: Request, token: Token, path: str, *, reads: bool) -> None:
    """Check that a token allows a call, as far as its path shows.

    Raises:
        Refused: 403, it does not.
        NotFound: the call is about a thread or run outside of the token's threads.
    """
    path = path.removeprefix(_PREFIX)
    if path.startswith(_OF_TENANT):
        raise Refused(403, "This call needs an API key; a token of a user does not do.", code="key_needed")
    if token.read_only and not reads:
        raise Refused(403, "This token may only read.", code="token_read_only")
    if token.threads is None:
        return
    if thread_id := request.path_params.get("thread_id"):
        if UUID(str(thread_id)) not in token.threads:
            raise NotFound("thread")
        if path.endswith("/fork"):
            raise not_of_threads()
    elif run_id := request.path_params.get("run_id"):
        async with request.app.state.database.connect() as connection:
            thread_of_run = await connection.scalar(_THREAD_OF_RUN, {"id": UUID(str(run_id))})
        if thread_of_run not in token.threads:
            raise NotFound("run")
    elif (request.method, path) not in _ABOUT_THREADS:
        raise not_of_threads()


def not_of_threads() -> Refused:
    """Refuse a call that is about no thread of a token."""
    return Refused(
        403, "This token is restricted to some threads; this call is in none of them.", code="token_restricted"
    )
