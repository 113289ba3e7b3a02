"""Which partial outputs a heartbeat stores: only what changed, and a few MiB at most, so that it is never held up.

Small ones are stored at each heartbeat, large ones in turn. Usage is always stored: it limits a run that crashes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from agent_relay.shared.event_log import LARGEST_TEXT_BYTES
from agent_relay.worker.execution.size_limits import len_utf8

KEEP_BYTES = 4 << 20
"""Text that one heartbeat stores."""


@dataclass(frozen=True, slots=True)
class Held:
    """The data that a heartbeat stores of a run in hand."""

    run_id: UUID
    attempt: int
    text: str | None
    last_entry: int
    usage: dict[str, float]


@dataclass(frozen=True, slots=True)
class Kept:
    """The content of a row once a heartbeat has stored it."""

    run: Held
    with_text: bool
    """Whether the text and its entry are stored now; else they stay as they were, and the text is not given."""


class PartialsToKeep:
    """Chooses the data of each heartbeat, and keeps the content of the rows."""

    def __init__(self) -> None:
        self._heartbeat = 0
        self._rows: dict[UUID, Held] = {}
        self._offered: dict[UUID, int] = {}
        """The heartbeat at which the text of a run was chosen last."""

    def choose(self, held: Iterable[Held]) -> list[Kept]:
        """Choose what this heartbeat stores of the runs in hand."""
        self._heartbeat += 1
        runs = {run.run_id: run for run in held}
        self._rows = {
            run_id: row for run_id, row in self._rows.items() if run_id in runs and row.attempt == runs[run_id].attempt
        }
        self._offered = {run_id: self._offered.get(run_id, self._heartbeat - 1) for run_id in runs}
        changed = [run for run in runs.values() if self._rows.get(run.run_id) != run]
        with_text = self._in_turn([run for run in changed if not self._holds_text_of(run)])
        self._offered |= dict.fromkeys(with_text, self._heartbeat)
        kept = [Kept(run, with_text=True) if run.run_id in with_text else self._usage_of(run) for run in changed]
        return [each for each in kept if each.with_text or self._rows.get(each.run.run_id) != each.run]

    def stored(self, kept: Iterable[Kept]) -> None:
        """Note the new content of the rows."""
        self._rows |= {each.run.run_id: each.run for each in kept}

    def _holds_text_of(self, run: Held) -> bool:
        row = self._rows.get(run.run_id)
        return row is not None and (row.text, row.last_entry) == (run.text, run.last_entry)

    def _in_turn(self, runs: Sequence[Held]) -> set[UUID]:
        """Choose texts that fit together: the smaller a text is and the longer it has waited, the sooner.

        At every second heartbeat, one that does not fit may go alone, the less often the larger it is.
        """
        sizes = {run.run_id: _size_of(run.text) for run in runs}
        waited = {run.run_id: self._heartbeat - self._offered[run.run_id] for run in runs}
        if self._heartbeat % 2 == 0:
            due = (
                run_id
                for run_id, size in sizes.items()
                if KEEP_BYTES < size <= LARGEST_TEXT_BYTES and waited[run_id] >= math.ceil(size / KEEP_BYTES)
            )
            if (alone := max(due, key=waited.__getitem__, default=None)) is not None:
                return {alone}
        chosen: set[UUID] = set()
        room = KEEP_BYTES
        for run_id in sorted(sizes, key=lambda run_id: sizes[run_id] / waited[run_id]):
            if sizes[run_id] <= room:
                chosen.add(run_id)
                room -= sizes[run_id]
        return chosen

    def _usage_of(self, run: Held) -> Kept:
        row = self._rows.get(run.run_id)
        text, last_entry = (None, 0) if row is None else (row.text, row.last_entry)  # The claim has emptied it.
        return Kept(replace(run, text=text, last_entry=last_entry), with_text=False)


def _size_of(text: str | None) -> int:
    """Measure a text; one that does not fit anyway is not encoded for that."""
    return len(text) if text and len(text) > KEEP_BYTES else len_utf8(text or "")
