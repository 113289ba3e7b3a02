"""How many runs of batches a worker answers at once: as many as leave its event loop time for interactive runs.

The number of slots is no measure: forty runs that wait for a slow model need no time, and two of a fast one take a
whole core. So the load of the loop is measured, twice a second. A batch begins with a few runs and soon has more, as
long as the loop has time; otherwise a batch has fewer, but never none.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path

SCHEDULER = Path("/proc/thread-self/schedstat")
"""Linux' figures of the thread that reads it: nanoseconds for which it ran, and for which it waited for a core."""
LOOK_SECONDS = 0.5
BEGIN_SHARE = 0.25
"""The share of the slots for batches with which a batch begins."""
FULL = 0.95
"""Above this busy share, the measurement saturates: more work does not show."""
TOLERANCE = 0.05
"""Nothing changes while the loop is so near to as busy as it may be."""


class AdaptiveLimit:
    """Adaptive limit on concurrent batch runs: grows while the event loop is less busy than its share, else shrinks."""

    def __init__(self, most: int, *, busy_share: float) -> None:
        self._most = most
        self._busy_share = busy_share
        self._begin = math.ceil(most * BEGIN_SHARE)
        self._most_held = 0
        """Since the last look."""
        self.slots = self._begin
        """The number of runs that batches may have now."""

    def note(self, held: int) -> None:
        """Store the number of slots that batches have."""
        self._most_held = max(self._most_held, held)

    def look(self, busy: float, held: int) -> None:
        """Allow more or fewer, after the loop was busy for this share of its time; batches have `held` slots now.

        All work of the loop counts: interactive runs go first. The limit is reset when no run of a batch is left.
        """
        if self._most_held == 0:
            self.slots = self._begin
        elif busy > self._busy_share + TOLERANCE:
            self.slots = max(1, math.floor(self.slots * (0.5 if busy >= FULL else self._busy_share / busy)))
        elif busy < self._busy_share - TOLERANCE and self._most_held >= self.slots:
            room = min(2, self._busy_share / max(busy, TOLERANCE))
            self.slots = min(self._most, max(self.slots + 1, math.floor(self.slots * room)))
        self._most_held = held


async def busy_shares() -> AsyncIterator[float]:
    """Return now and then the share of its time for which this thread was busy since the last value."""
    at, wanted = time.monotonic(), _wanted_seconds()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now, want = time.monotonic(), _wanted_seconds()
        yield (want - wanted) / (now - at)
        at, wanted = now, want


def _wanted_seconds() -> float:
    """Read for how long this thread has run, and on Linux also for how long it would have, had it had a core."""
    try:
        ran, waited, _ = SCHEDULER.read_text().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(ran) + int(waited)) / 1e9
