"""Stream tickets: the right to follow one run, for clients that cannot send headers. Signed, not stored.

A ticket is 53 bytes: the reference of the key it was made with, when it expires, and a signature over both and the run.
It says nothing about its user, and it is valid for no longer than its key.
"""

from __future__ import annotations

import base64
import hmac
import re
from datetime import UTC, datetime
from uuid import UUID

from agent_relay.api.problems import CHALLENGE, Refused
from agent_relay.api.requests.key_cache import KeyCache
from agent_relay.shared.api_keys import REFERENCE_BYTES, ApiKey
from agent_relay.shared.clock import now

_TIME_BYTES = 5
_SIGNATURE_BYTES = 32
_FORM = re.compile(r"[A-Za-z0-9_-]{71}", re.ASCII)


class Tickets:
    """Signs and reads tickets, with a secret that all API processes share."""

    def __init__(self, keys: KeyCache) -> None:
        self._keys = keys

    def sign(self, run_id: UUID, key: ApiKey, expires_at: datetime) -> str:
        """Write a ticket for one run; raises as `KeyCache.ticket_secret` does."""
        claims = key.reference + int(expires_at.timestamp()).to_bytes(_TIME_BYTES)
        return base64.urlsafe_b64encode(claims + self._signature(run_id, claims)).decode().rstrip("=")

    def key_of(self, ticket: str, run_id: UUID) -> ApiKey:
        """Find the key that a ticket for this run was made with.

        Raises:
            Refused: 401; it is not ours, has expired, is for another run, or its key is not valid any more.
            KeysUnknown: the keys have not been read yet.
        """
        if not _FORM.fullmatch(ticket):
            raise refused()
        data = base64.urlsafe_b64decode(f"{ticket}=")
        claims, signature = data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(run_id, claims)):
            raise refused()
        expires_at = datetime.fromtimestamp(int.from_bytes(claims[REFERENCE_BYTES:]), UTC)
        key = self._keys.find_by_reference(claims[:REFERENCE_BYTES])
        if key is None or expires_at <= now():
            raise refused()
        return key

    def _signature(self, run_id: UUID, claims: bytes) -> bytes:
        return hmac.digest(self._keys.ticket_secret, b"stream ticket 2\0" + run_id.bytes + claims, "sha256")


def refused() -> Refused:
    """Refuse a ticket."""
    return Refused(401, "The ticket is not valid for this stream.", headers=CHALLENGE)
