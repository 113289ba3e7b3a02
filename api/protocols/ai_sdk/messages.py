"""The messages of a chat as the AI SDK keeps them, for the first paint of a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from pydantic import JsonValue
from pydantic_core import from_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.files import UNNAMED
from agent_relay.api.protocols.ai_sdk.renderer import OUTPUT, reasoning_id
from agent_relay.api.requests.pagination import bounded, read_bounded
from agent_relay.api.schemas import Step
from agent_relay.api.steps import SIZE_OF_STEPS, steps_of_runs
from agent_relay.shared.attachments import Attached, attached_of
from agent_relay.shared.database.typed_rows import columns
from agent_relay.shared.schemas import Metadata, Resource, RunRequest, metadata_of, requests_in, requests_of


@dataclass(frozen=True, slots=True)
class _Row:
    """A message, and what its parts are made of."""

    id: UUID
    role: Literal["user", "assistant", "system"]
    content: str
    attachments: JsonValue
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

_SIZE = f"(octet_length(content) + coalesce(octet_length(CAST(attachments AS text)), 0) + {SIZE_OF_STEPS})"
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


async def last_messages(
    database: AsyncEngine, thread_id: UUID, limit: int, url_of_file: Callable[[object], str]
) -> list[UiMessage]:
    """Read the last messages of a thread, fewer where they are large, in the order of the conversation."""
    async with database.connect() as connection:
        found = read_bounded(await connection.execute(_LAST, {"thread_id": thread_id, "limit": limit}), _Row)
    steps, _ = await steps_of_runs(database, [row.steps_of for row in found.rows if row.steps_of is not None])
    return [
        UiMessage(
            id=row.id,
            role=row.role,
            metadata=metadata_of(row.metadata),
            parts=_parts(row, steps.get(row.steps_of, []) if row.steps_of else [], url_of_file),
        )
        for row in reversed(found.rows)
    ]


def _parts(row: _Row, steps: Sequence[Step], url_of_file: Callable[[object], str]) -> list[dict[str, JsonValue]]:
    if row.role != "assistant":
        attached = [_attached(each, url_of_file) for each in attached_of(row.attachments)]
        return [*attached, {"type": "text", "text": row.content}]
    requests = {request.request_id: request for request in requests_of(row.requests)}
    last = max((number for number, step in enumerate(steps) if step.kind == "response"), default=-1)
    parts = _Parts(url_of_file)
    for number, step in enumerate(steps):
        match step.kind:
            case "tool_call" | "native_tool":
                parts.call(_tool(step, requests.get(step.tool_call_id or "")), native=step.kind == "native_tool")
                parts.show(step.result)
            case "reasoning":
                parts.think(step.text or "")
            case "response" if row.text_output and number != last and step.text:
                parts.say({"type": "text", "text": step.text, "state": "done"})
            case _:
                pass
    output = _output(row)
    parts.say(output)
    parts.show(output.get("data"))
    return parts.said


def _attached(attached: Attached, url_of_file: Callable[[object], str]) -> dict[str, JsonValue]:
    """Show what was attached; a page reads a file of this service by its path, with the headers of all calls."""
    stored, media_type, filename = attached.get("file_id"), attached.get("media_type"), attached.get("filename")
    url = attached["url"] if stored is None else url_of_file(stored)
    part: dict[str, JsonValue] = {"type": "file", "mediaType": media_type or UNNAMED, "url": url}
    return part if filename is None else part | {"filename": filename}


class _Parts:
    """The parts of an answer, with a mark where a new response begins: after the calls of the one before."""

    def __init__(self, url_of_file: Callable[[object], str]) -> None:
        self._url_of_file = url_of_file
        self._shown = set[str]()
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

    def show(self, made: JsonValue) -> None:
        """Add the files that a tool has returned, or that the output is, each once."""
        if isinstance(made, list):
            for each in made:
                self.show(each)
        elif isinstance(made, dict) and {"file_id", "media_type"} <= made.keys() <= {"file_id", "media_type", "bytes"}:
            file_id, media_type = str(made["file_id"]), str(made["media_type"])
            if file_id not in self._shown:
                self._shown.add(file_id)
                self.said.append({"type": "file", "mediaType": media_type, "url": self._url_of_file(file_id)})
        elif isinstance(made, dict):
            for each in made.values():
                self.show(each)


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
