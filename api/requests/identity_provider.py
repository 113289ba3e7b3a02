"""Tokens of an identity provider (OIDC): JWTs that it signs, read with the public keys that it publishes.

The keys are fetched apart from the requests and used for a while. After a token with an unknown key they are fetched
again, but not more often than every `AGAIN_SECONDS`, whatever callers send.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx2
import jwt

from agent_relay.api.requests.user_tokens import Token
from agent_relay.api.requests.users import user_of
from agent_relay.shared.api_keys import ApiKey
from agent_relay.shared.key_format import TENANT
from agent_relay.shared.settings import Settings, is_loopback

log = logging.getLogger(__name__)

KEYS_SECONDS = 600.0
"""After this time, the keys are fetched anew."""
AGAIN_SECONDS = 30.0
"""Between two fetches at least."""
BELIEVED_SECONDS = 3600.0
"""How long the last fetched keys are used while the provider is away."""
FETCH_SECONDS = 5.0
SKEW_SECONDS = 60
"""By which the provider's clock and ours may differ."""
LONGEST_SECONDS = 366 * 86_400
"""After this time a stream that was opened with a token ends, whatever the token's own time."""
MOST_BYTES = 1 << 20
"""The size limit of the provider's response."""
_ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""By the type of a key: asymmetric ones only, so that no public key passes for a secret."""
_DISCOVERY = "/.well-known/openid-configuration"


class ProviderAway(Exception):
    """The keys of the provider are not known: whether a token is valid is not known."""


@dataclass(frozen=True, slots=True)
class _Key:
    """A public key, and the algorithms that it may be used with."""

    key: Any
    algorithms: tuple[str, ...]


class IdentityProvider:
    """Reads tokens of one issuer for one audience."""

    def __init__(self, settings: Settings) -> None:
        """Take an issuer as the settings name it."""
        self._issuer = settings.jwt_issuer or ""
        self._audience = settings.jwt_audience
        self._tenant, self._tenant_claim = settings.jwt_tenant, settings.jwt_tenant_claim
        self._keys_url = settings.jwt_jwks_url
        self._http = httpx2.AsyncClient(timeout=FETCH_SECONDS)
        self._lock = asyncio.Lock()
        self._keys: dict[str | None, _Key] = {}
        self._fetched_at = self._tried_at = -math.inf
        self._answered = False
        """Whether the last fetch succeeded."""

    async def run(self) -> None:
        """Fetch the keys for ever."""
        try:
            while True:
                await self._fetch_again()
                await asyncio.sleep(KEYS_SECONDS if self._answered else AGAIN_SECONDS)
        finally:
            await self._http.aclose()

    async def read(self, token: str) -> tuple[ApiKey, UUID, Token] | None:
        """Identify the user of a token; None if it is not valid.

        Raises:
            ProviderAway: the key that it names is not known, and the provider cannot be reached.
        """
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in {name for names in _ALGORITHMS.values() for name in names}:
                return None
            key = await self._key(header.get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key.key,
                key.algorithms,
                {"require": ["exp", "sub", "aud", "iss"], "enforce_minimum_key_length": True},
                audience=self._audience,
                issuer=self._issuer,
                leeway=SKEW_SECONDS,
            )
            tenant = self._tenant or claims.get(self._tenant_claim or "")
            if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
                return None
            user_id = user_of(tenant, claims["sub"])
            expires_at = min(float(claims["exp"]) + SKEW_SECONDS, time.time() + LONGEST_SECONDS)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return None  # A caller may write anything into a token: the library's own errors are not all there are.
        return ApiKey.of_issuer(self._issuer, tenant), user_id, Token(math.inf, expires_at)

    async def _key(self, name: object) -> _Key | None:
        """Find a key by its id, or the only one without one; None where there is none of that name."""
        if name is not None and not isinstance(name, str):
            return None
        if name not in self._keys:
            await self._fetch_again()
        if time.monotonic() - self._fetched_at > BELIEVED_SECONDS or (name not in self._keys and not self._answered):
            raise ProviderAway
        return self._keys.get(name)

    async def _fetch_again(self) -> None:
        """Fetch the keys, unless they were asked for a moment ago; one fetch at a time."""
        async with self._lock:
            if time.monotonic() - self._tried_at < AGAIN_SECONDS:
                return
            self._tried_at = time.monotonic()
            self._answered = False
            try:
                async with asyncio.timeout(FETCH_SECONDS):
                    self._keys = await self._fetch()
            except Exception as error:  # noqa: BLE001  (whatever a provider answers, this process goes on)
                log.warning("identity_provider.away error=%r", error)
                return
            self._fetched_at = time.monotonic()
            self._answered = True

    async def _fetch(self) -> dict[str | None, _Key]:
        """Fetch the keys that sign. Its exceptions depend on the provider's response."""
        url = self._keys_url or await self._discover()
        keys: dict[str | None, _Key] = {}
        published: list[dict[str, Any]] = (await self._get(url))["keys"]
        for given in published:
            algorithms = _ALGORITHMS.get(given.get("kty", ""), ())
            if given.get("use", "sig") != "sig" or not algorithms:
                continue
            try:
                key = jwt.PyJWK(given)
            except Exception as error:  # noqa: BLE001  (whatever is odd about one key, the others are keys)
                log.warning("identity_provider.key_not_usable error=%s", type(error).__name__)
                continue
            if "alg" in given or key.key_type != "RSA":
                algorithms = tuple({key.algorithm_name} & set(algorithms))
            keys[key.key_id] = _Key(key.key, algorithms)
        if not keys:
            raise ValueError("no key that signs")
        if len(keys) == 1:
            keys[None] = next(iter(keys.values()))
        else:
            keys.pop(None, None)
        return keys

    async def _discover(self) -> str:
        """Ask the issuer where its keys are."""
        found = await self._get(self._issuer.rstrip("/") + _DISCOVERY)
        if found["issuer"] != self._issuer:
            raise ValueError("the issuer calls itself otherwise than JWT_ISSUER")
        url = found["jwks_uri"]
        if urlsplit(url).scheme != "https" and not (is_loopback(url) and is_loopback(self._issuer)):
            raise ValueError("the keys are not published over https")
        return url

    async def _get(self, url: str) -> dict[str, Any]:
        async with self._http.stream("GET", url, headers={"Accept": "application/json"}) as response:
            if response.status_code != HTTPStatus.OK:
                raise ValueError(f"status {response.status_code}")
            body = b""
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise ValueError("too long")
        found: dict[str, Any] = json.loads(body)
        return found
