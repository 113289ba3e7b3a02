"""The slot policy of a worker: interactive runs first, and always some slots; batches the rest, and a turn.

The number of slots for batches depends on the worker's time, too: see `adaptive_limit.py`.

It counts and does not read queues: the queue consumer pops from the queues that it names, in that order.
"""

from __future__ import annotations

import math
from collections import Counter

from agent_relay.shared.queue import Lane
from agent_relay.worker.queue.adaptive_limit import AdaptiveLimit


class Shares:
    """The slots of one worker, and their runs."""

    def __init__(self, slots: int, *, interactive_share: float, batch_turn: int) -> None:
        self._slots = slots
        self._kept = min(math.ceil(slots * interactive_share), slots - 1)
        """Slots that batches never take; one is theirs in any case."""
        self._allowance = AdaptiveLimit(slots - self._kept, busy_share=1 - interactive_share)
        self._batch_turn = batch_turn
        self._held = Counter[Lane]()
        self._in_a_row = 0
        """Interactive runs taken since batches had their last turn."""

    def lanes(self) -> list[Lane]:
        """Name the lanes that the next free slot may be filled from, best first.

        Batches leave the last slots free, but where interactive runs take every slot, one of a batch goes first now and
        then: it may have one of the last slots, as long as batches do not hold all the others.
        """
        if self._held[Lane.BATCH] >= self._allowance.slots:
            return [Lane.INTERACTIVE]
        if self._is_turn_of_batches():
            return [Lane.BATCH, Lane.INTERACTIVE]
        if self._slots - self._held.total() > self._kept:
            return [Lane.INTERACTIVE, Lane.BATCH]
        return [Lane.INTERACTIVE]

    def room(self, lane: Lane) -> int:
        """Return how many runs of a named queue may be taken at once."""
        free = self._slots - self._held.total()
        if self._is_turn_of_batches():
            return 1
        if lane is Lane.BATCH:
            return min(free - self._kept, self._allowance.slots - self._held[Lane.BATCH])
        until_turn = self._batch_turn - self._in_a_row
        return min(free, until_turn) if until_turn > 0 else free

    def take(self, lane: Lane) -> None:
        """Note that a run of this lane took a slot; a turn of batches without a queued batch run is over."""
        had_their_turn = lane is Lane.BATCH or self._is_turn_of_batches()
        self._in_a_row = 0 if had_their_turn else self._in_a_row + 1
        self._held[lane] += 1
        self._allowance.note(self._held[Lane.BATCH])

    def free(self, lane: Lane) -> None:
        """Note that its slot is free again."""
        self._held[lane] -= 1

    def _is_turn_of_batches(self) -> bool:
        return self._in_a_row >= self._batch_turn and self._held[Lane.BATCH] < self._allowance.slots

    def look(self, busy: float) -> None:
        """Leave batches more slots or fewer, after the event loop was busy for this share of its time."""
        self._allowance.look(busy, self._held[Lane.BATCH])
