"""Sign-in codes: a link signs a browser in once, so that no key has to be pasted. Kept in Redis, as a hash."""

from __future__ import annotations

import secrets
from hashlib import sha256
from uuid import UUID

from redis.asyncio import Redis

from agent_relay.api.requests.identity import Owner, shown_key
from agent_relay.shared.api_keys import REFERENCE_BYTES
from agent_relay.shared.redis_names import Names

LIFE_SECONDS = 600
_CODE_BYTES = 24


class SignInCodes:
    """Makes codes, and takes each of them once."""

    def __init__(self, redis: Redis, names: Names) -> None:
        self._redis = redis
        self._names = names

    async def make(self, caller: Owner) -> str:
        """Make a code that signs in as this caller.

        Raises:
            RedisError, OSError: Redis is away.
        """
        code = secrets.token_urlsafe(_CODE_BYTES)
        await self._redis.set(self._name(code), shown_key(caller).reference + caller.user_id.bytes, ex=LIFE_SECONDS)
        return code

    async def take(self, code: str) -> tuple[bytes, UUID] | None:
        """Return the reference of the key and the user that a code stands for, and forget it; raises as `make` does."""
        found: bytes | None = await self._redis.getdel(self._name(code))
        return None if found is None else (found[:REFERENCE_BYTES], UUID(bytes=found[REFERENCE_BYTES:]))

    def _name(self, code: str) -> str:
        return self._names.sign_in_code(sha256(code.encode(errors="replace")).hexdigest())
