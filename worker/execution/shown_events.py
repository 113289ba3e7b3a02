"""The events of an agent's work besides its answer: tool calls, the provider's own tools, and progress."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pydantic_ai.messages import (
    CustomEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    NativeToolCallPart,
    NativeToolReturnPart,
    PartEndEvent,
    PartStartEvent,
)
from pydantic_core import from_json

from agent_relay.worker.catalog import ToolEvents
from agent_relay.worker.extent import Endless, finite
from agent_relay.worker.storable import as_json, storable
from agent_relay.worker.sub_agents import SubAgentEvent

log = logging.getLogger(__name__)

MOST_PROGRESS = 1000
"""Later progress events of an attempt are published one a second at most, since a late reader reads all of them."""
PROGRESS_PAUSE_SECONDS = 1.0
LARGEST_PROGRESS = 16
"""Times that progress may be larger than an event carries, and is still shown in part."""


class ShownEvents:
    """Tells the events of one attempt's agent, as far as its setting goes."""

    def __init__(
        self, tell: Callable[[dict[str, Any]], None], setting: ToolEvents, longest_bytes: int, told: frozenset[str]
    ) -> None:
        self._tell = tell
        self._setting = setting
        self._longest = longest_bytes
        self._told = set(told)
        """The calls that readers have received before the run began to wait."""
        self._progress = 0
        self._may_tell_at = 0.0
        """On the loop's clock: when progress may be published again."""

    async def take(self, event: Any) -> None:
        """Tell an event of pydantic-ai's, if it is one that readers are shown."""
        if isinstance(event, CustomEvent) and not isinstance(event, SubAgentEvent):
            await self._tell_progress(event)
        elif self._setting is ToolEvents.OFF:
            pass
        elif isinstance(event, SubAgentEvent):
            self._tell_tool(event.event, parent_tool_call_id=event.tool_call_id)
        else:
            self._tell_tool(event)

    def _tell_tool(self, event: Any, **more: Any) -> None:
        match event:
            case FunctionToolCallEvent(part=part) if part.tool_call_id in self._told:
                self._told.discard(part.tool_call_id)
            case FunctionToolCallEvent(part=part):
                self._tell_call(part, **more)
            case FunctionToolResultEvent(part=part):
                self._tell_result(part, **more)
            case PartEndEvent(part=NativeToolCallPart() as part):
                self._tell_call(part, native=True, **more)
            case PartStartEvent(part=NativeToolReturnPart() as part):
                self._tell_result(part, native=True, **more)
            case _:
                pass

    def _tell_call(self, part: Any, **more: Any) -> None:
        args = self._shown(lambda: _text_of(part.args_as_json_str, part.args))
        self._tell({"event": "tool_call", **_names(part), "args": args, **more})

    def _tell_result(self, part: Any, **more: Any) -> None:
        content = self._shown(lambda: _text_of(part.model_response_str, part.content))
        self._tell({"event": "tool_result", **_names(part), "content": content, **more})

    def _shown(self, say: Callable[[], str]) -> str | None:
        return self._capped(say()) if self._setting is ToolEvents.FULL else None

    async def _tell_progress(self, event: CustomEvent) -> None:
        """Publish an event of the agent's own code, unless it has `ui=False`."""
        now = asyncio.get_running_loop().time()
        if not event.ui or now < self._may_tell_at:
            return
        self._progress += 1
        if self._progress >= MOST_PROGRESS:
            self._may_tell_at = now + PROGRESS_PAUSE_SECONDS
        told: dict[str, Any] = {"event": "progress", "name": str(event.name), "data": await self._data_of(event)}
        if event.tool_call_id is not None and self._setting is not ToolEvents.OFF:
            told["tool_call_id"] = str(event.tool_call_id)
        self._tell(told)

    async def _data_of(self, event: CustomEvent) -> Any:
        """Return the data of an event as a JSON value; if it is too large, its beginning as text."""
        most = self._longest * LARGEST_PROGRESS
        try:
            payload, _ = await finite(event.to_payload(), most)
        except Endless:
            return f"… (more than {most} bytes)"
        except Exception:  # Whatever the agent's own code raises: its run goes on.
            log.exception("answer.progress_not_read name=%s", event.name)
            return None
        text = as_json(payload)
        capped = self._capped(text)
        return from_json(text) if capped == text else capped

    def _capped(self, text: str) -> str:
        """Cut a text that is too long for an event, and mark the cut."""
        data = text.encode()
        if len(data) <= self._longest:
            return data.decode()
        return data[: self._longest].decode(errors="ignore") + f"… ({len(data)} bytes)"


def _names(part: Any) -> dict[str, Any]:
    return {"tool_call_id": part.tool_call_id, "tool_name": part.tool_name}


def _text_of(say: Callable[[], str], value: Any) -> str:
    """Write a tool's arguments or result as pydantic-ai does; values that it cannot write are repaired or left out."""
    try:
        return storable(say())
    except BaseException:  # noqa: BLE001  (serializers of foreign classes raise anything)
        return storable(value) if isinstance(value, str) else as_json(value)
