"""Stream tickets: the right to follow one run, for clients that cannot send headers. Signed, not stored.

A ticket is 53 bytes: the reference of the key it was made with, when it expires, and a signature over both and the run.
One that was made with a token of a user has 8 bytes more, the time at which the token was made: it is void once the
tokens of the user are.
A ticket does not reveal its user, and it is valid for no longer than its key.
"""

from __future__ import annotations

import base64
import hmac
import re
import struct
from datetime import UTC, datetime
from uuid import UUID

from agent_relay.api.problems import CHALLENGE, Refused
from agent_relay.api.requests.key_cache import KeyCache
from agent_relay.api.requests.user_tokens import Token
from agent_relay.shared.api_keys import REFERENCE_BYTES, ApiKey
from agent_relay.shared.clock import now

_TIME_BYTES = 5
_SIGNATURE_BYTES = 32
_FORM = re.compile(r"[A-Za-z0-9_-]{71}|[A-Za-z0-9_-]{82}", re.ASCII)
_OF_KEY = REFERENCE_BYTES + _TIME_BYTES


class Tickets:
    """Signs and reads tickets, with a secret that all API processes share."""

    def __init__(self, keys: KeyCache) -> None:
        self._keys = keys

    def sign(self, run_id: UUID, key: ApiKey, expires_at: datetime, token: Token | None = None) -> tuple[str, datetime]:
        """Write a ticket for one run; returns it, and when it expires. Raises as `KeyCache.ticket_secret` does."""
        if token is not None:
            expires_at = min(expires_at, datetime.fromtimestamp(token.expires_at, UTC))
        claims = key.reference + int(expires_at.timestamp()).to_bytes(_TIME_BYTES)
        if token is not None:
            claims += struct.pack(">d", token.issued_at)
        ticket = base64.urlsafe_b64encode(claims + self._signature(run_id, claims)).decode().rstrip("=")
        return ticket, expires_at

    def read(self, ticket: str, run_id: UUID) -> tuple[bytes, Token | None]:
        """Read the reference of the key that a ticket for this run was made with; and the data of its token, if any.

        Raises:
            Refused: 401; it is not ours, has expired, or is for another run.
            KeysUnknown: the keys have not been read yet.
        """
        if not _FORM.fullmatch(ticket):
            raise refused()
        data = base64.urlsafe_b64decode(ticket + "=" * (-len(ticket) % 4))
        claims, signature = data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(run_id, claims)):
            raise refused()
        expires_at = datetime.fromtimestamp(int.from_bytes(claims[REFERENCE_BYTES:_OF_KEY]), UTC)
        reference = claims[:REFERENCE_BYTES]
        if expires_at <= now():
            raise refused()
        if len(claims) == _OF_KEY:
            return reference, None
        (issued_at,) = struct.unpack(">d", claims[_OF_KEY:])
        return reference, Token(issued_at, expires_at.timestamp(), read_only=True)

    def _signature(self, run_id: UUID, claims: bytes) -> bytes:
        return hmac.digest(self._keys.ticket_secret, b"stream ticket 2\0" + run_id.bytes + claims, "sha256")


def refused() -> Refused:
    """Refuse a ticket."""
    return Refused(401, "The ticket is not valid for this stream.", headers=CHALLENGE)
