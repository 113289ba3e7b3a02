"""The one source of time and of ids, so that tests can freeze both."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from uuid import UUID

_RANDOM_BITS = 74


def now() -> datetime:
    """Tell the time of this machine, in UTC; leases go by the database's clock instead."""
    return datetime.now(UTC)


def now_ms() -> int:
    """Tell the milliseconds since 1970 on this machine."""
    return time.time_ns() // 1_000_000


def new_id() -> UUID:
    """Make a UUID of version 7 (RFC 9562): random, and sorted by the millisecond of its making."""
    random = int.from_bytes(os.urandom(10)) & ((1 << _RANDOM_BITS) - 1)
    high, low = random >> 62, random & ((1 << 62) - 1)
    return UUID(int=(now_ms() & ((1 << 48) - 1)) << 80 | 7 << 76 | high << 64 | 2 << 62 | low)


def new_ids(count: int) -> range:
    """Make a number of ids at once, as integers: one after the other, with the same first 80 bits."""
    first = new_id().int & ~(1 << 47)
    return range(first, first + count)
