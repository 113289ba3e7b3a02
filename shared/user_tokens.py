"""Revocations of users' tokens: of each user the time up to which tokens are void. Tokens themselves are not stored.

All times are those of the database, so that the clocks of processes decide nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.database.typed_rows import columns, read
from agent_relay.shared.errors import NotFound

LONGEST_SECONDS = 86_400
"""Life of a token, at most."""
KEPT_SECONDS = LONGEST_SECONDS + 3_600
"""Life of a revocation: by then, the tokens that it voids have expired."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """A user's tokens that were made up to a time are void."""

    tenant: str
    user_id: UUID
    revoked_before: datetime


_NOW = text("""
    SELECT clock_timestamp() AS now, count(*) AS threads FROM threads
    WHERE id = ANY(CAST(:thread_ids AS uuid[])) AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
""")

_REVOKE = text("""
    INSERT INTO user_token_revocations AS former (tenant, user_id, revoked_before)
    VALUES (:tenant, :user_id, clock_timestamp())
    ON CONFLICT (tenant, user_id) DO UPDATE SET revoked_before = greatest(former.revoked_before, clock_timestamp())
""")

_FORGET = text("""
    DELETE FROM user_token_revocations WHERE (tenant, user_id) IN (
        SELECT tenant, user_id FROM user_token_revocations
        WHERE revoked_before < now() - make_interval(secs => :kept_seconds) LIMIT 1000 FOR UPDATE SKIP LOCKED)
""")

_SINCE = text(f"""
    SELECT {columns(Revocation)} FROM user_token_revocations
    WHERE revoked_before > coalesce(CAST(:since AS timestamptz) - make_interval(secs => :overlap_seconds),
                                    now() - make_interval(secs => :kept_seconds))
""")  # noqa: S608  (a constant)


async def time_to_begin(database: AsyncEngine, tenant: str, user_id: UUID, thread_ids: Collection[UUID]) -> datetime:
    """Say the time at which a token is made that is restricted to these threads of its user.

    Raises:
        NotFound: one of them is not there, or not this user's.
    """
    async with database.connect() as connection:
        values = {"tenant": tenant, "user_id": user_id, "thread_ids": list(thread_ids)}
        row = (await connection.execute(_NOW, values)).one()
    if row.threads != len(thread_ids):
        raise NotFound("thread")
    return row.now


async def revoke(database: AsyncEngine, tenant: str, user_id: UUID) -> None:
    """Make all tokens of a user void that were made until now, in all processes within a second."""
    async with database.begin() as connection:
        await revoke_in(connection, tenant, user_id)


async def revoke_in(connection: AsyncConnection, tenant: str, user_id: UUID) -> None:
    """Do the same within a transaction."""
    await connection.execute(_REVOKE, {"tenant": tenant, "user_id": user_id})
    await connection.execute(_FORGET, {"kept_seconds": KEPT_SECONDS})


async def revoked_since(database: AsyncEngine, since: datetime | None, overlap_seconds: float) -> list[Revocation]:
    """Read the revocations since a time, less an overlap for long transactions; without one, all that matter."""
    async with database.connect() as connection:
        values = {"since": since, "overlap_seconds": overlap_seconds, "kept_seconds": KEPT_SECONDS}
        return read(await connection.execute(_SINCE, values), Revocation)
