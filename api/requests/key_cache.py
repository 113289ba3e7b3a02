"""The valid API keys, in memory: found in constant time, and at most half a second behind the database."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.api_keys import ApiKey, changed, note_use, secret_of_service
from agent_relay.shared.away import skip_if_database_away
from agent_relay.shared.clock import now
from agent_relay.shared.key_format import hash_key
from agent_relay.shared.settings import Settings
from agent_relay.shared.user_tokens import KEPT_SECONDS, Revocation, revoked_since

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
OVERLAP_SECONDS = 10.0
"""A change may be committed up to this time after the time in its row."""
NOTE_USE_SECONDS = 30.0
TICKETS = "stream tickets"
MOST_REVOCATIONS = 100_000
"""How many users of a tenant may have revoked tokens at a time."""


class KeysUnknown(Exception):
    """The keys have not been read since this process began: whether one is valid is not known."""


class KeyCache:
    """The keys that callers may use."""

    def __init__(
        self,
        settings: Settings,
        database: AsyncEngine,
        revoked: Callable[[bytes], None],
        tokens_revoked: Callable[[Revocation], None],
    ) -> None:
        """`revoked` is called with the reference of each key that is not valid any more.

        `tokens_revoked` is called with each revocation of a user's tokens.
        """
        self._database = database
        self._revoked = revoked
        self._tokens_revoked = tokens_revoked
        self._issuer = settings.jwt_issuer
        self._revocations: dict[tuple[str, UUID], datetime] = {}
        """Of each user the time up to which tokens are void, the oldest first."""
        self._revocations_of = Counter[str]()
        """How many of these are of a tenant."""
        self._revocations_read_until: datetime | None = None
        self._by_hash = {key_hash: ApiKey.of_settings(key_hash, name) for key_hash, name in settings.api_keys.items()}
        self._by_reference = {key.reference: key for key in self._by_hash.values()}
        secret = settings.ticket_secret
        self._ticket_secret = None if secret is None else secret.get_secret_value().encode()
        self._read_until: datetime | None = None
        self.first_read = asyncio.Event()
        """The database has been read once: from then on a key that is not here is not valid."""
        self._used: dict[UUID, datetime] = {}

    def find(self, key: bytes) -> ApiKey | None:
        """Find a valid key. Its hash is looked up, so the time does not show how close a wrong key is.

        Raises:
            KeysUnknown: it is not one of `API_KEYS`, and the database has not been read yet.
        """
        found = self._by_hash.get(hash_key(key))
        if found is None and self._read_until is None:
            raise KeysUnknown
        return self._valid(found)

    def find_by_reference(self, reference: bytes, tenant: str | None = None) -> ApiKey | None:
        """Find a valid key by its reference, as tickets carry it; raises as `find` does.

        With a tenant, also the stand-in for a key of users that come from the identity provider.
        """
        found = self._by_reference.get(reference)
        if found is None and tenant is not None and self._issuer is not None:
            of_issuer = ApiKey.of_issuer(self._issuer, tenant)
            found = of_issuer if of_issuer.reference == reference else None
        if found is None and self._read_until is None:
            raise KeysUnknown
        return self._valid(found)

    def is_void(self, tenant: str, user_id: UUID, issued_at: float) -> bool:
        """Say whether the tokens of a user are void that were made at a time, in seconds since 1970.

        Raises:
            KeysUnknown: the revocations have not been read yet.
        """
        if self._read_until is None:
            raise KeysUnknown
        revoked_before = self._revocations.get((tenant, user_id))
        return revoked_before is not None and issued_at <= revoked_before.timestamp()

    def has_room(self, tenant: str, user_id: UUID) -> bool:
        """Say whether the tokens of one more user of a tenant may be revoked: each process remembers all of them."""
        return (tenant, user_id) in self._revocations or self._revocations_of[tenant] < MOST_REVOCATIONS

    def _valid(self, found: ApiKey | None) -> ApiKey | None:
        if found is None or found.has_expired:
            return None
        if found.id is not None:
            self._used[found.id] = now()
        return found

    @property
    def ticket_secret(self) -> bytes:
        """The secret that signs stream tickets, the same in all processes.

        Raises:
            KeysUnknown: it has not been read yet.
        """
        if self._ticket_secret is None:
            raise KeysUnknown
        return self._ticket_secret

    async def run(self) -> None:
        """Follow the database for ever; while it is away, the keys stay as they were."""
        noted_at = 0.0
        loop = asyncio.get_running_loop()
        while True:
            with skip_if_database_away(log, "keys.not_read"):
                await self.read()
                if self._used and loop.time() - noted_at > NOTE_USE_SECONDS:
                    used, self._used, noted_at = self._used, {}, loop.time()
                    await note_use(self._database, used)
            self._end_expired()
            await asyncio.sleep(POLL_SECONDS)

    async def read(self) -> None:
        """Read the changes since the last time."""
        if self._ticket_secret is None:
            self._ticket_secret = await secret_of_service(self._database, TICKETS, secrets.token_bytes(32))
        rows = await changed(self._database, self._read_until, OVERLAP_SECONDS)
        for row in rows:
            key = ApiKey.of_row(row)
            if row.revoked_at is None:
                self._by_hash[row.key_hash] = self._by_reference[key.reference] = key
            elif self._by_hash.pop(row.key_hash, None) is not None:
                self._end(key)
        await self._read_revocations()
        known = [row.changed_at for row in rows]
        self._read_until = max(known, default=self._read_until or datetime.fromtimestamp(0, UTC))
        self.first_read.set()

    async def _read_revocations(self) -> None:
        rows = await revoked_since(self._database, self._revocations_read_until, OVERLAP_SECONDS)
        for row in sorted(rows, key=lambda row: row.revoked_before):
            user = row.tenant, row.user_id
            if self._revocations.get(user) != row.revoked_before:
                self._forget(user)
                self._revocations[user] = row.revoked_before
                self._revocations_of[row.tenant] += 1
                self._tokens_revoked(row)
        times = [row.revoked_before for row in rows]
        self._revocations_read_until = max(times, default=self._revocations_read_until)
        expired = now() - timedelta(seconds=KEPT_SECONDS)
        while self._revocations and next(iter(self._revocations.values())) < expired:
            self._forget(next(iter(self._revocations)))

    def _forget(self, user: tuple[str, UUID]) -> None:
        if self._revocations.pop(user, None) is not None:
            self._revocations_of[user[0]] -= 1

    def _end_expired(self) -> None:
        for key_hash, key in [each for each in self._by_hash.items() if each[1].has_expired]:
            del self._by_hash[key_hash]
            self._end(key)

    def _end(self, key: ApiKey) -> None:
        self._by_reference.pop(key.reference, None)
        self._revoked(key.reference)
