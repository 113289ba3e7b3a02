"""Idempotency keys: a call that is repeated under its key creates nothing again.

A key is a row beside its result, written in the same transaction: after any crash, both exist or neither does. While
that transaction is open it holds an advisory lock for the key, which is tried and never waited for: another call with
the same key holds no connection meanwhile.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from agent_relay.shared.errors import KeyInUse, KeyReused


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key, as a caller gave it with one call."""

    tenant: str
    user_id: UUID
    route: str
    """The path that was called; on another one the same key is another key."""
    key: str
    body_hash: bytes
    """SHA-256 of the body as it was received, byte for byte."""
    kept_seconds: float

    @property
    def lock(self) -> int:
        """The number of the advisory lock."""
        name = "\n".join((self.tenant, str(self.user_id), self.route, self.key))
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


class Repeated(Exception):
    """The key has created something before; nothing is created now."""

    def __init__(self, created: UUID) -> None:
        super().__init__(f"The key created {created}.")
        self.created = created


_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:lock)")

_KEEP = text("""
    INSERT INTO idempotency_keys (tenant, user_id, route, key, body_hash, created, expires_at)
    VALUES (:tenant, :user_id, :route, :key, :body_hash, :created, now() + make_interval(secs => :kept_seconds))
    ON CONFLICT (tenant, user_id, route, key) DO UPDATE
    SET body_hash = excluded.body_hash, created = excluded.created, expires_at = excluded.expires_at
    WHERE idempotency_keys.expires_at <= now()
    RETURNING created
""")

_EARLIER = text("""
    SELECT body_hash, created FROM idempotency_keys
    WHERE tenant = :tenant AND user_id = :user_id AND route = :route AND key = :key
""")


async def keep(connection: AsyncConnection, key: Key | None, created: UUID) -> None:
    """Store a key: the first step of the transaction that creates its result. Without a key, do nothing.

    It raises where nothing is to be created, which ends the transaction: see `api/requests/idempotency.py`.

    Raises:
        Repeated: the key has created something before, under the same body.
        KeyReused: it has, under another body.
        KeyInUse: another call with this key has not committed yet; end the transaction, and try again in a moment.
    """
    if key is None:
        return
    if not await connection.scalar(_TRY_LOCK, {"lock": key.lock}):
        raise KeyInUse
    # A new statement: it sees the commits made before the lock was released.
    values = {
        "tenant": key.tenant,
        "user_id": key.user_id,
        "route": key.route,
        "key": key.key,
        "body_hash": key.body_hash,
        "created": created,
        "kept_seconds": key.kept_seconds,
    }
    if (await connection.execute(_KEEP, values)).one_or_none() is not None:
        return
    earlier = (await connection.execute(_EARLIER, values)).one_or_none()
    if earlier is None:  # It has just expired and was erased.
        raise KeyInUse
    if earlier.body_hash != key.body_hash:
        raise KeyReused
    raise Repeated(earlier.created)
