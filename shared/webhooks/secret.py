"""A tenant's secrets: the one that is shown, and for a while the one before, which signs as well.

Secrets are only added, numbered from 1, so that two rotations at once make the same one.
"""

from __future__ import annotations

import base64
import math
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from agent_relay.shared.errors import RotatedLately

SECRET_BYTES = 32
ROTATION_SECONDS = 60
"""Least time between two rotations of a tenant's."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A tenant's secret."""

    secret: str
    """As Standard Webhooks writes it: `whsec_` and base64."""
    created_at: datetime
    former_until: datetime | None
    """Until when the one before signs as well; None where there is none, or not any more."""


_ADD = text("""
    INSERT INTO webhook_secrets (tenant, number, secret) VALUES (:tenant, :number, :secret)
    ON CONFLICT (tenant, number) DO NOTHING
""")

_SIGNING = text("""
    SELECT secret FROM (
        SELECT number, secret, lead(created_at) OVER (ORDER BY number) AS replaced_at
        FROM webhook_secrets WHERE tenant = :tenant
    ) AS numbered
    WHERE replaced_at IS NULL OR replaced_at > now() - make_interval(secs => :overlap_seconds)
    ORDER BY number DESC LIMIT 2
""")
"""Each signature is a part of a header: two at most, however often the secret is rotated."""

_CURRENT = text("""
    SELECT number, secret, created_at,
        CASE WHEN number > 1 AND created_at > now() - make_interval(secs => :overlap_seconds)
             THEN created_at + make_interval(secs => :overlap_seconds) END AS former_until,
        CASE WHEN number > 1 THEN extract(epoch FROM now() - created_at) END AS rotated_seconds_ago
    FROM webhook_secrets WHERE tenant = :tenant ORDER BY number DESC LIMIT 1
""")

_FORGET = text("""
    DELETE FROM webhook_secrets AS former WHERE tenant = :tenant AND EXISTS (
        SELECT FROM webhook_secrets AS later
        WHERE later.tenant = former.tenant AND later.number > former.number
          AND (later.number > former.number + 1 OR later.created_at < now() - make_interval(secs => :overlap_seconds)))
""")


async def signing_secrets(connection: AsyncConnection, tenant: str, overlap_seconds: float) -> list[str]:
    """Read the secrets to sign with now, newest first; a tenant that has none yet is given one."""
    values = {"tenant": tenant, "overlap_seconds": overlap_seconds}
    found = (await connection.scalars(_SIGNING, values)).all()
    if not found:
        await _add(connection, tenant, 1)
        found = (await connection.scalars(_SIGNING, values)).all()
    return list(found)


async def current_secret(connection: AsyncConnection, tenant: str, overlap_seconds: float) -> Secret:
    """Read the tenant's newest secret; a tenant that has none yet is given one."""
    row = await _current(connection, tenant, overlap_seconds)
    return Secret(row.secret, row.created_at, row.former_until)


async def rotate_secret(connection: AsyncConnection, tenant: str, overlap_seconds: float) -> Secret:
    """Add a secret; the one that it takes the place of signs for the overlap as well, and is then forgotten.

    Raises:
        RotatedLately: the last rotation was less than a minute ago.
    """
    row = await _current(connection, tenant, overlap_seconds)
    if row.rotated_seconds_ago is not None and row.rotated_seconds_ago < ROTATION_SECONDS:
        raise RotatedLately(ROTATION_SECONDS, math.ceil(ROTATION_SECONDS - max(row.rotated_seconds_ago, 0)))
    await _add(connection, tenant, row.number + 1)
    await connection.execute(_FORGET, {"tenant": tenant, "overlap_seconds": overlap_seconds})
    return await current_secret(connection, tenant, overlap_seconds)


async def _current(connection: AsyncConnection, tenant: str, overlap_seconds: float) -> Any:
    values = {"tenant": tenant, "overlap_seconds": overlap_seconds}
    row = (await connection.execute(_CURRENT, values)).one_or_none()
    if row is None:
        await _add(connection, tenant, 1)
        row = (await connection.execute(_CURRENT, values)).one()
    return row


async def _add(connection: AsyncConnection, tenant: str, number: int) -> None:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    await connection.execute(_ADD, {"tenant": tenant, "number": number, "secret": secret})
