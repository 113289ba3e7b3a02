"""Stream tickets: the right to follow one run, for clients that cannot send headers. Signed, not stored."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from uuid import UUID

from api.problems import Refused
from shared.clock import now
from shared.settings import Settings

_SIGNATURE_BYTES = 32


class Tickets:
    """Signs and reads tickets with a key that all API processes derive from the same settings."""

    def __init__(self, settings: Settings) -> None:
        secret = (
            settings.ticket_secret.get_secret_value() if settings.ticket_secret else ",".join(sorted(settings.api_keys))
        )
        self._key = hashlib.sha256(b"agent-relay stream ticket\0" + secret.encode()).digest()

    def sign(self, run_id: UUID, tenant: str, user_id: UUID, expires_at: datetime) -> str:
        """Write a ticket for one run of one owner."""
        claims = [str(run_id), tenant, str(user_id), int(expires_at.timestamp())]
        payload = json.dumps(claims, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._signature(payload) + payload).decode().rstrip("=")

    def owner(self, ticket: str, run_id: str) -> tuple[str, UUID]:
        """Read whose run a ticket is for.

        Raises:
            Refused: 401; it is not ours, has expired, or is for another run.
        """
        try:
            data = base64.urlsafe_b64decode(ticket + "=" * (-len(ticket) % 4))
        except ValueError:
            raise _refused() from None
        signature, payload = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(payload)):
            raise _refused()
        run, tenant, user_id, expires = json.loads(payload)
        if run != run_id.lower() or datetime.fromtimestamp(expires, UTC) < now():
            raise _refused()
        return tenant, UUID(user_id)

    def _signature(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, "sha256")


def _refused() -> Refused:
    return Refused(401, "The ticket is not valid for this stream.", headers={"WWW-Authenticate": "ApiKey"})
