"""The messages of a chat as the AI SDK keeps them, for the first paint of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from pydantic import JsonValue
from pydantic_core import from_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.protocols.ai_sdk.renderer import OUTPUT, reasoning_id
from agent_relay.api.requests.pagination import bounded, read_bounded
from agent_relay.api.schemas import Step
from agent_relay.api.steps import SIZE_OF_STEPS, steps_of_runs
from agent_relay.shared.database.typed_rows import columns
from agent_relay.shared.schemas import Metadata, Resource, RunRequest, metadata_of, requests_in, requests_of


@dataclass(frozen=True, slots=True)
class _Row:
    """A message, and what its parts are made of."""

    id: UUID
    role: Literal["user", "assistant", "system"]
    content: str
    metadata: JsonValue
    position: int
    place: int
    text_output: bool
    steps_of: UUID | None
    requests: JsonValue


_OF_MESSAGE = columns(
    _Row,
    "messages",
    text_output="coalesce(runs.text_output, agents.text_output, true)",
    steps_of="CASE WHEN role = 'assistant' THEN messages.run_id END",
    requests=f"CASE WHEN role = 'assistant' THEN {requests_in('runs')} END",
)

_SELECT = f"""
    SELECT {_OF_MESSAGE}
    FROM messages JOIN threads ON threads.id = messages.thread_id
    LEFT JOIN agents ON agents.agent_type = threads.agent_type LEFT JOIN runs ON runs.id = messages.run_id
    WHERE messages.thread_id = :thread_id ORDER BY position DESC, place DESC LIMIT :limit
"""  # noqa: S608  (constants)

_SIZE = f"(octet_length(content) + {SIZE_OF_STEPS})"
_LAST = text(bounded(_SELECT, _SIZE, "position DESC, place DESC"))


class UiMessage(Resource):
    """A message as `useChat` keeps it."""

    id: UUID
    """The message's id."""
    role: Literal["user", "assistant", "system"]
    """Who speaks."""
    metadata: Metadata
    """`run_id`; of an answer also `usage`, `model`, and `status: "interrupted"` where its run was cancelled."""
    parts: list[dict[str, JsonValue]]
    """What it consists of, as the stream would have made it."""


async def last_messages(database: AsyncEngine, thread_id: UUID, limit: int) -> list[UiMessage]:
    """Read the last messages of a thread, fewer where they are large, in the order of the conversation."""
    async with database.connect() as connection:
        found = read_bounded(await connection.execute(_LAST, {"thread_id": thread_id, "limit": limit}), _Row)
    steps, _ = await steps_of_runs(database, [row.steps_of for row in found.rows if row.steps_of is not None])
    return [
        UiMessage(
            id=row.id,
            role=row.role,
            metadata=metadata_of(row.metadata),
            parts=_parts(row, steps.get(row.steps_of, []) if row.steps_of else []),
        )
        for row in reversed(found.rows)
    ]


def _parts(row: _Row, steps: Sequence[Step]) -> list[dict[str, JsonValue]]:
    if row.role != "assistant":
        return [{"type": "text", "text": row.content}]
    requests = {request.request_id: request for request in requests_of(row.requests)}
    last = max((number for number, step in enumerate(steps) if step.kind == "response"), default=-1)
    parts = _Parts()
    for number, step in enumerate(steps):
        match step.kind:
            case "tool_call" | "native_tool":
                parts.call(_tool(step, requests.get(step.tool_call_id or "")), native=step.kind == "native_tool")
            case "reasoning":
                parts.think(step.text or "")
            case "response" if row.text_output and number != last and step.text:
                parts.say({"type": "text", "text": step.text, "state": "done"})
            case _:
                pass
    parts.say(_output(row))
    return parts.said


class _Parts:
    """The parts of an answer, with a mark where a new response begins: after the calls of the one before."""

    def __init__(self) -> None:
        self.said: list[dict[str, JsonValue]] = [{"type": "step-start"}]
        self._called = False
        self._thoughts = 0

    def say(self, part: dict[str, JsonValue]) -> None:
        """Add what a response says."""
        if self._called:
            self.said.append({"type": "step-start"})
        self._called = False
        self.said.append(part)

    def think(self, thought: str) -> None:
        """Add a part of the reasoning."""
        self._thoughts += 1
        self.say({"type": "reasoning", "id": reasoning_id(self._thoughts), "text": thought, "state": "done"})

    def call(self, part: dict[str, JsonValue], *, native: bool) -> None:
        """Add a call; one of the provider's own tools is a part of the response."""
        self.said.append(part)
        self._called = self._called or not native


def _output(row: _Row) -> dict[str, JsonValue]:
    if not row.text_output:
        try:
            return {"type": f"data-{OUTPUT}", "id": OUTPUT, "data": from_json(row.content)}
        except ValueError:
            pass
    return {"type": "text", "text": row.content, "state": "done"}


def _tool(step: Step, request: RunRequest | None) -> dict[str, JsonValue]:
    part: dict[str, Any] = {"type": f"tool-{step.tool_name}", "toolCallId": step.tool_call_id, "input": step.args}
    if step.kind == "native_tool":
        part["providerExecuted"] = True
    answer = {} if request is None else request.answer or {}
    if "approve" in answer:
        part["approval"] = {"id": step.tool_call_id, "approved": answer["approve"]}
        if answer["approve"] is False:
            return part | {"state": "output-denied"}
    if "error" in answer:
        return part | {"state": "output-error", "errorText": answer["error"]}
    if step.finished_at is None and step.result is None:
        return part | {"state": "input-available"}
    return part | {"state": "output-available", "output": step.result}
