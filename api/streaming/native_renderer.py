"""The service's own protocol: every event of a run as it is, in the framing that the reader asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from agent_relay.api.streaming.run_feed import Event, Text
from agent_relay.api.streaming.sse_and_ndjson import Framing
from agent_relay.api.streaming.threads import PlaceInThread, ThreadPlace
from agent_relay.shared.event_log import REASONING, Id
from agent_relay.shared.rows import RunRow
from agent_relay.shared.text_delta import Growth, growth


class NativeRenderer:
    """Writes the events of a run for one reader. Text that is the same for several readers is written once."""

    __slots__ = ("_base", "_deltas", "_framing", "_in_thread", "_message_id", "_thought")

    def __init__(self, run: RunRow, framing: Framing, *, deltas: bool, in_thread: PlaceInThread | None = None) -> None:
        """Write the stream of a run, or with its place there its part of the stream of a thread."""
        self._framing = framing
        self._in_thread = in_thread
        self._message_id = str(run.message_id)
        self._deltas = deltas
        self._base: tuple[Id, str, int] | None = None
        """The text that the reader has, where it is sent growth."""
        self._thought: tuple[Id, str, int] | None = None
        """The part of the reasoning that the reader has been sent last."""

    @property
    def media_type(self) -> str:
        """The media type of the framing."""
        return self._framing.value

    @property
    def opening(self) -> bytes:
        """The beginning of a stream in this format; the stream of a thread has begun before."""
        return self._framing.opening if self._in_thread is None else b""

    @property
    def keepalive(self) -> bytes:
        """The keep-alive of this format."""
        return self._framing.keepalive

    def render(self, item: Event | Text) -> bytes:
        """Write an item, or take what another reader was written; and note that this one has it."""
        if isinstance(item, Event):
            if item.name == "gap":
                self._base = self._thought = None
            name = "done" if item.name == "pause" else item.name
            return self._shared(item, self._framing, lambda: (name, item.fields))
        sent = (item.id, item.whole, item.part) if self._deltas else None
        if item.part:
            base, self._thought = self._thought, sent
        else:
            base, self._base = self._base, sent
        if base is None or base[0].attempt != item.id.attempt or base[2] != item.part:
            return self._shared(item, self._framing, lambda: self._text(item, {"token": item.whole}))
        if base[0] == item.before and item.growth is not None:
            growth_of_all = item.growth
            return self._shared(item, (self._framing, "growth"), lambda: self._text(item, _grown(growth_of_all)))
        grown = growth(base[1], item.whole)
        said = self._text(item, {"token": item.whole} if grown is None else _grown(grown))
        return self._frame(item.id, *said)

    def _text(self, item: Text, said: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if item.part:
            return REASONING, {"message_id": self._message_id, "part": item.part, **said}
        return "text_delta", {"message_id": self._message_id, **said}

    def _shared(self, item: Event | Text, kind: Hashable, say: Callable[[], tuple[str, Mapping[str, Any]]]) -> bytes:
        if self._in_thread is not None:
            kind = (kind, "in_thread")
        frame = item.frames.get(kind)
        if frame is None:
            frame = item.frames[kind] = self._frame(item.id, *say())
        return frame

    def _frame(self, event_id: Id, name: str, fields: Mapping[str, Any]) -> bytes:
        place = self._in_thread
        if place is None:
            return self._framing.frame(event_id, name, fields)
        before = {"after_run_id": place.after_run_id} if name == "message_created" else {}
        return self._framing.frame(ThreadPlace(place.seq, event_id), name, {"run_id": place.run_id, **fields, **before})


def _grown(grown: Growth) -> dict[str, Any]:
    return {"drop": grown.drop, "append": grown.append}
