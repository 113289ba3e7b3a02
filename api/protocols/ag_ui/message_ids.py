"""What messages are called that streams have given to clients: by the answer, the attempt that told it, and a number.

So a client that sends its messages again shows which of them it has from which stream.
"""

from __future__ import annotations

import re
from uuid import UUID

_ID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-([0-9]{1,10})-[0-9]{1,10}", re.ASCII)


def message_id(answer: UUID, attempt: int, number: int) -> str:
    """Name a message."""
    return f"{answer}-{attempt}-{number}"


def told_by(given: str) -> tuple[UUID, int] | None:
    """Say which answer a message is of, and which attempt; None where the client has made it."""
    found = _ID.fullmatch(given)
    return None if found is None else (UUID(found[1]), int(found[2]))
