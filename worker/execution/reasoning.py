"""A model's reasoning in events: part by part, and cut if it is too long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, ThinkingPart, ThinkingPartDelta

from agent_relay.worker.storable import storable

MOST_PARTS = 256
"""Later parts of a run are not shown, because a reader of the run holds all shown parts in memory."""


@dataclass(slots=True)
class _Part:
    """A part of the reasoning."""

    number: int
    shown: str = ""
    length: int = 0
    """In bytes, with those that are not shown."""
    is_cut: bool = False


class Reasoning:
    """The reasoning of one attempt. Its parts are numbered on from those of steps that earlier attempts finished."""

    def __init__(self, show: Callable[[int, str], None], longest_bytes: int, kept: int) -> None:
        self._show = show
        self._left = longest_bytes
        self._last = kept
        self._parts: dict[int, _Part] = {}
        """Those of the response that is being written, by their places in it."""

    def begin_response(self) -> None:
        """Another response begins: places in it are counted anew."""
        self._parts = {}

    def hear(self, event: Any) -> None:
        """Process a part of the model's stream."""
        if isinstance(event, PartDeltaEvent):
            part = self._parts.get(event.index)
            if part is not None and isinstance(event.delta, ThinkingPartDelta) and event.delta.content_delta:
                self._add(part, event.delta.content_delta)
        elif isinstance(event, PartStartEvent) and isinstance(event.part, ThinkingPart):
            replaced = self._parts.get(event.index)
            if replaced is None:
                self._last += 1
            part = self._parts[event.index] = _Part(self._last if replaced is None else replaced.number)
            self._add(part, event.part.content)

    def _add(self, part: _Part, text: str) -> None:
        data = storable(text).encode()
        part.length += len(data)
        part.shown += data[: self._left].decode(errors="ignore")
        part.is_cut |= len(data) > self._left
        self._left = max(self._left - len(data), 0)
        if part.number <= MOST_PARTS:  # A part that is cut still grows by its length: the model is alive.
            self._show(part.number, f"{part.shown}… ({part.length} bytes)" if part.is_cut else part.shown)
