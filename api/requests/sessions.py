"""Sessions of the pages: a cookie that stands for an API key and a user. Signed, not stored.

A cookie holds the reference of the key, the user, when it expires, and a signature. It is valid for no longer than its
key. Browsers send cookies unasked, so every call that changes something must also prove that a page of ours made it.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import Request
from fastapi.responses import Response

from agent_relay.api.problems import Refused
from agent_relay.api.requests.key_cache import KeyCache
from agent_relay.shared.api_keys import REFERENCE_BYTES, ApiKey
from agent_relay.shared.clock import now

COOKIE = "agent_relay_session"
OPERATOR_COOKIE = "agent_relay_operator"
PAGE_HEADER = "X-Agent-Relay-Page"
"""Sent by the pages with every call. Another site cannot send it without a preflight, which is refused."""
LIFE = timedelta(days=7)
OPERATOR_LIFE = timedelta(hours=12)
_TIME_BYTES = 5
_SIGNATURE_BYTES = 32
_FORM = re.compile(r"[A-Za-z0-9_-]{92}", re.ASCII)
_SAFE_METHODS = {"GET", "HEAD"}


@dataclass(frozen=True, slots=True)
class Session:
    """A session that is valid."""

    key: ApiKey
    user_id: UUID
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class OperatorSession:
    """A session of an operator that is valid."""

    name: str
    expires_at: datetime


class Sessions:
    """Signs and reads the cookies, with a secret that all API processes share."""

    def __init__(self, keys: KeyCache, operator_keys: Mapping[str, str]) -> None:
        """`operator_keys` are the names of operators by the hashes of their keys."""
        self._keys = keys
        self._operators = {_operator_reference(key_hash): name for key_hash, name in operator_keys.items()}

    def begin(self, response: Response, request: Request, key: ApiKey, user_id: UUID) -> None:
        """Set the cookie of a new session; raises as `KeyCache.ticket_secret` does."""
        expires_at = now() + LIFE if key.expires_at is None else min(now() + LIFE, key.expires_at)
        self._begin(response, request, COOKIE, key.reference + user_id.bytes, expires_at)

    def begin_operator(self, response: Response, request: Request, key_hash: str) -> None:
        """Set the cookie of a new session of an operator; raises as `KeyCache.ticket_secret` does."""
        self._begin(response, request, OPERATOR_COOKIE, _operator_reference(key_hash), now() + OPERATOR_LIFE)

    def _begin(self, response: Response, request: Request, cookie: str, whose: bytes, expires_at: datetime) -> None:
        claims = whose + int(expires_at.timestamp()).to_bytes(_TIME_BYTES)
        value = base64.urlsafe_b64encode(claims + self._signature(cookie, claims)).decode()
        self._set(response, request, cookie, value, int((expires_at - now()).total_seconds()))

    def end(self, response: Response, request: Request) -> None:
        """Remove the cookie from the browser."""
        self._set(response, request, COOKIE, "", 0)

    def end_operator(self, response: Response, request: Request) -> None:
        """Remove the cookie of an operator from the browser."""
        self._set(response, request, OPERATOR_COOKIE, "", 0)

    def read(self, request: Request) -> Session | None:
        """Find the session of a request.

        Raises:
            Refused: 403, the call changes something and does not come from a page of this service.
            KeysUnknown: the keys have not been read yet.
        """
        whose, expires_at = self._read(request, COOKIE)
        key = self._keys.find_by_reference(whose[:REFERENCE_BYTES]) if whose else None
        if key is None:
            return None
        if request.method not in _SAFE_METHODS:
            check_page(request)
        return Session(key, UUID(bytes=whose[REFERENCE_BYTES:]), expires_at)

    def read_operator(self, request: Request) -> OperatorSession | None:
        """Find the session of an operator; raises as `read` does."""
        whose, expires_at = self._read(request, OPERATOR_COOKIE)
        name = self._operators.get(whose)
        if name is None:
            return None
        if request.method not in _SAFE_METHODS:
            check_page(request)
        return OperatorSession(name, expires_at)

    def _read(self, request: Request, name: str) -> tuple[bytes, datetime]:
        """Read the session of a cookie and when it expires; an empty one where the cookie is not valid."""
        nobody = b"", now()
        cookie = request.cookies.get(name, "")
        if not _FORM.fullmatch(cookie):
            return nobody
        data = base64.urlsafe_b64decode(cookie)
        claims, signature = data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(name, claims)):
            return nobody
        expires_at = datetime.fromtimestamp(int.from_bytes(claims[-_TIME_BYTES:]), UTC)
        return nobody if expires_at <= now() else (claims[:-_TIME_BYTES], expires_at)

    def _signature(self, cookie: str, claims: bytes) -> bytes:
        purpose = b"session" if cookie == COOKIE else b"operator session"
        return hmac.digest(self._keys.ticket_secret, purpose + b"\0" + claims, "sha256")

    @staticmethod
    def _set(response: Response, request: Request, cookie: str, value: str, seconds: int) -> None:
        """Set the cookie. Behind a proxy that terminates TLS, only the browser's `Origin` has the scheme."""
        response.set_cookie(
            cookie,
            value,
            max_age=seconds,
            path=f"{request.app.state.settings.root_path}/",
            httponly=True,
            samesite="strict",
            secure=request.headers.get("Origin", "").startswith("https:"),
        )


def _operator_reference(key_hash: str) -> bytes:
    """Write in 32 bytes which key of an operator a cookie stands for, without giving the hash of the key away."""
    return sha256(key_hash.encode()).digest()


def check_page(request: Request) -> None:
    """See that a page of this service makes the call, and no other site.

    Raises:
        Refused: 403, the header of the pages is missing, or the call comes from another origin.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is None:  # Browsers leave it out over plain HTTP.
        origin = urlsplit(request.headers.get("Origin", "")).netloc
        site = "same-origin" if origin and origin == request.headers.get("Host") else "cross-site"
    if PAGE_HEADER not in request.headers or site != "same-origin":
        detail = f"A session may only be used by the pages of this service: send {PAGE_HEADER} from the same origin."
        raise Refused(403, detail, code="not_from_page")
