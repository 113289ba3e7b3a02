"""API keys in the database: made, listed, rotated and revoked while the service runs. Of a key only its hash is kept.

`API_KEYS` goes on serving small installations: a key is valid if it stands there or here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.clock import new_id, now
from agent_relay.shared.database import PLACE
from agent_relay.shared.database.typed_rows import columns, read, read_one
from agent_relay.shared.errors import NotFound
from agent_relay.shared.key_format import hash_key, new_key

PREFIX_CHARACTERS = 11
"""Of a key that is shown wherever it is listed: `ar_` and eight more."""
REFERENCE_BYTES = 16
_USERS_OF_KEYS = UUID("6f1f6a0e-0c1d-4b0b-8b7c-52d0a1c7c2ab")
"""Namespace of the users that keys stand for. Never change it: the ids of users depend on it."""


class Scope(StrEnum):
    """The rights of a key."""

    ASK = "ask"
    """Threads and runs: everything but batches and webhooks."""
    BATCHES = "batches"
    """Batches and their results."""
    WEBHOOKS = "webhooks"
    """The webhook secret and deliveries."""
    READ = "read"
    """Every call that only reads."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as it is listed; None of scopes and agents stands for all."""

    id: UUID
    tenant: str
    label: str
    prefix: str
    scopes: list[str] | None
    agents: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    own_user: UUID | None
    """The user that it stands for where none is named, if a former key was rotated to it; None for its own."""


@dataclass(frozen=True, slots=True)
class ChangedKey(KeyRow):
    """A key as processes look it up."""

    key_hash: str
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is checked; None stands for everything."""

    tenant: str
    reference: bytes
    """16 bytes that identify the key and do not reveal it."""
    scopes: frozenset[Scope] | None = None
    agents: frozenset[str] | None = None
    """The agents that may be asked with it."""
    expires_at: datetime | None = None
    id: UUID | None = None
    """Its row; None for a key of `API_KEYS`."""
    named_user: UUID | None = None
    """The user that it stands for where a call names none, if it was handed on to it."""

    @classmethod
    def of_settings(cls, key_hash: str, tenant: str) -> ApiKey:
        """Make a key of `API_KEYS`."""
        return cls(tenant, hashlib.sha256(key_hash.encode()).digest()[:REFERENCE_BYTES])

    @classmethod
    def of_issuer(cls, issuer: str, tenant: str) -> ApiKey:
        """Make what stands for a key where a token of an identity provider was shown: it may do everything."""
        return cls(tenant, hashlib.sha256(f"{issuer}\0{tenant}".encode()).digest()[:REFERENCE_BYTES])

    @classmethod
    def of_row(cls, row: KeyRow) -> ApiKey:
        """Make a key of its row. A scope that this version does not know allows nothing."""
        known = {scope.value for scope in Scope}
        scopes = None if row.scopes is None else frozenset(Scope(scope) for scope in row.scopes if scope in known)
        agents = None if row.agents is None else frozenset(row.agents)
        return cls(row.tenant, row.id.bytes, scopes, agents, row.expires_at, row.id, row.own_user)

    @property
    def own_user(self) -> UUID:
        """The user that it stands for where a call names none, the same in all its calls and in those of successors."""
        return self.named_user or uuid5(_USERS_OF_KEYS, self.reference.hex())

    @property
    def has_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= now()

    def allows(self, scopes: Iterable[Scope]) -> bool:
        """Say whether one of these scopes is the key's."""
        return self.scopes is None or not self.scopes.isdisjoint(scopes)


_KEY = columns(KeyRow)

_CREATE = text(f"""
    INSERT INTO api_keys (id, tenant, label, prefix, key_hash, scopes, agents, expires_at, own_user)
    VALUES (:id, :tenant, :label, :prefix, :key_hash, CAST(:scopes AS text[]), CAST(:agents AS text[]),
            CAST(:expires_at AS timestamptz), CAST(:own_user AS uuid))
    RETURNING {_KEY}
""")  # noqa: S608  (a constant)

_SELECT_PAGE = f"SELECT {_KEY} FROM api_keys WHERE (created_at, id) < {PLACE}"  # noqa: S608  (constants)
_IN_ORDER = "ORDER BY created_at DESC, id DESC LIMIT :limit"

_LIST = text(f"{_SELECT_PAGE} {_IN_ORDER}")

_LIST_OF_TENANT = text(f"{_SELECT_PAGE} AND tenant = :tenant {_IN_ORDER}")

_REVOKE = text(f"""
    UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()), changed_at = now() WHERE id = :id RETURNING {_KEY}
""")  # noqa: S608  (a constant)

_EXPIRE = text(f"""
    UPDATE api_keys SET expires_at = least(expires_at, now() + make_interval(secs => :seconds)), changed_at = now()
    WHERE id = :id AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) RETURNING {_KEY}
""")  # noqa: S608  (a constant)

_HAND_ON = text("UPDATE schedules SET key_reference = :new, updated_at = now() WHERE key_reference = :former")

_CHANGED = text(f"""
    SELECT {columns(ChangedKey)} FROM api_keys
    WHERE (CAST(:since AS timestamptz) IS NULL AND revoked_at IS NULL)
       OR changed_at > CAST(:since AS timestamptz) - make_interval(secs => :overlap_seconds)
""")  # noqa: S608  (a constant)

_USED = text("""
    UPDATE api_keys SET last_used_at = greatest(last_used_at, used.at)
    FROM (SELECT unnest(CAST(:ids AS uuid[])) AS id, unnest(CAST(:ats AS timestamptz[])) AS at) AS used
    WHERE api_keys.id = used.id
""")

_SECRET = text("""
    INSERT INTO service_secrets (name, secret) VALUES (:name, :secret)
    ON CONFLICT (name) DO UPDATE SET secret = service_secrets.secret RETURNING secret
""")


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key that was made; it is shown once."""

    row: KeyRow
    key: str


async def create(
    database: AsyncEngine,
    tenant: str,
    *,
    label: str = "",
    scopes: Sequence[Scope] | None = None,
    agents: Sequence[str] | None = None,
    expires_at: datetime | None = None,
) -> NewApiKey:
    """Make a key of a tenant."""
    key = new_key()
    values = {
        "id": new_id(),
        "tenant": tenant,
        "label": label,
        "prefix": key[:PREFIX_CHARACTERS],
        "key_hash": hash_key(key.encode()),
        "scopes": None if scopes is None else [scope.value for scope in scopes],
        "agents": None if agents is None else list(agents),
        "expires_at": expires_at,
        "own_user": None,
    }
    async with database.begin() as connection:
        return await _created(connection, values, key)


async def list_page(
    database: AsyncEngine, tenant: str | None, before: tuple[datetime | None, UUID | None], limit: int
) -> list[KeyRow]:
    """Read the rows of keys, of a tenant or of all, newest first, from a place on."""
    async with database.connect() as connection:
        values = {"at": before[0], "id": before[1], "limit": limit}
        if tenant is None:
            return read(await connection.execute(_LIST, values), KeyRow)
        return read(await connection.execute(_LIST_OF_TENANT, {**values, "tenant": tenant}), KeyRow)


async def revoke(database: AsyncEngine, key_id: UUID) -> KeyRow:
    """Make a key invalid, in all processes within a second; its streams end. Returns its row.

    Raises:
        NotFound: there is no such key.
    """
    async with database.begin() as connection:
        row = read_one(await connection.execute(_REVOKE, {"id": key_id}), KeyRow)
    if row is None:
        raise NotFound("key")
    return row


async def rotate(database: AsyncEngine, key_id: UUID, overlap_seconds: float) -> NewApiKey:
    """Make a key that may do the same; the former one is valid for `overlap_seconds` more. Its schedules go on.

    Raises:
        NotFound: there is no such key, or it is not valid any more.
    """
    key = new_key()
    async with database.begin() as connection:
        values = {"id": key_id, "seconds": overlap_seconds}
        former = read_one(await connection.execute(_EXPIRE, values), KeyRow)
        if former is None:
            raise NotFound("key")
        successor = new_id()
        values = {
            "id": successor,
            "tenant": former.tenant,
            "label": former.label,
            "prefix": key[:PREFIX_CHARACTERS],
            "key_hash": hash_key(key.encode()),
            "scopes": former.scopes,
            "agents": former.agents,
            "expires_at": None,
            "own_user": ApiKey.of_row(former).own_user,
        }
        await connection.execute(_HAND_ON, {"former": former.id.bytes, "new": successor.bytes})
        return await _created(connection, values, key)


async def _created(connection: AsyncConnection, values: Mapping[str, Any], key: str) -> NewApiKey:
    [row] = read(await connection.execute(_CREATE, values), KeyRow)
    return NewApiKey(row, key)


async def changed(database: AsyncEngine, since: datetime | None, overlap_seconds: float) -> list[ChangedKey]:
    """Read the rows that changed since a time, less an overlap for long transactions; without one, the valid."""
    async with database.connect() as connection:
        values = {"since": since, "overlap_seconds": overlap_seconds}
        return read(await connection.execute(_CHANGED, values), ChangedKey)


async def note_use(database: AsyncEngine, used: Mapping[UUID, datetime]) -> None:
    """Store when keys were used last."""
    async with database.begin() as connection:
        await connection.execute(_USED, {"ids": list(used), "ats": list(used.values())})


async def secret_of_service(database: AsyncEngine, name: str, proposed: bytes) -> bytes:
    """Read a secret that all processes share; where there is none yet, `proposed` becomes it."""
    async with database.begin() as connection:
        return bytes(await connection.scalar(_SECRET, {"name": name, "secret": proposed}))
