"""A run as a response: its status, its output items and what it used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from agent_relay.api.protocols.openai.ids import CALL, MESSAGE, conversation_id, response_id
from agent_relay.shared.database.tables import TERMINAL, RequestKind, RunStatus
from agent_relay.shared.rows import RunRow
from agent_relay.shared.schemas import error_of, metadata_of, requests_of, whole_usage

COMPLETED, INCOMPLETE = "completed", "incomplete"
WAITING = {"reason": "waiting"}
"""Why a response is incomplete whose run waits for what only `POST /api/v1/runs/{id}/answers` can answer."""

_STATUS: Mapping[str, str] = {
    RunStatus.QUEUED: "queued",
    RunStatus.RUNNING: "in_progress",
    RunStatus.SUCCEEDED: COMPLETED,
    RunStatus.FAILED: "failed",
    RunStatus.CANCELLED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class Beside:
    """What a response says that is not in its run's row."""

    previous: UUID | None = None
    """The run before it in its thread."""
    instructions: str | None = None
    background: bool | None = None


def response_of(row: RunRow, beside: Beside) -> dict[str, Any]:
    """Show a run."""
    if row.status == RunStatus.WAITING:
        return waiting_response(head_of(row, beside), calls_of(open_requests(row)), row.usage)
    output: list[dict[str, Any]] = []
    if row.status == RunStatus.SUCCEEDED:
        output = [message_item(message_id(row), row.output or "", COMPLETED)]
    elif row.status in TERMINAL and row.partial_output is not None:
        output = [message_item(message_id(row), row.partial_output, INCOMPLETE)]
    return finished(head_of(row, beside), row.status, output, usage=row.usage, error=row.error)


def head_of(row: RunRow, beside: Beside) -> dict[str, Any]:
    """Say what does not change while a run goes on."""
    metadata = {name: _text(value) for name, value in metadata_of(row.metadata).items()}
    return {
        "id": response_id(row.id),
        "object": "response",
        "created_at": int(row.created_at.timestamp()),
        "model": row.agent_type,
        "background": beside.background,
        "conversation": None if row.thread_id is None else {"id": conversation_id(row.thread_id)},
        "previous_response_id": None if beside.previous is None else response_id(beside.previous),
        "instructions": beside.instructions,
        "metadata": metadata,
        "parallel_tool_calls": True,
        "temperature": None,
        "top_p": None,
        "tool_choice": "auto",
        "tools": [],
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
    }


def finished(
    head: Mapping[str, Any],
    status: str,
    output: Sequence[Mapping[str, Any]],
    *,
    usage: object = None,
    error: object = None,
) -> dict[str, Any]:
    """Show a response as it is in a status of its run."""
    said: dict[str, Any] = {
        **head,
        "status": _STATUS.get(status, "in_progress"),
        "error": None,
        "incomplete_details": None,
        "output": output,
        "usage": usage_of_response(usage) if status in TERMINAL else None,
    }
    if status == RunStatus.FAILED:
        failure = error_of(error)
        said["error"] = {"code": failure.code, "message": failure.message}
    return said


def waiting_response(
    head: Mapping[str, Any], calls: Sequence[Mapping[str, Any]] | None, usage: object
) -> dict[str, Any]:
    """Show a response whose run waits: complete with calls for its client, or incomplete where these are not all."""
    said = finished(head, RunStatus.SUCCEEDED, calls or [], usage=usage)
    return said if calls else {**said, "status": INCOMPLETE, "incomplete_details": WAITING}


def open_requests(row: RunRow) -> list[dict[str, Any]]:
    """List what a run waits for."""
    return [request.model_dump(mode="json") for request in requests_of(row.requests) if request.answer is None]


def calls_of(requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Show what a run waits for as calls that the client makes; None where some of it is no such call."""
    if not all(request["kind"] == RequestKind.EXTERNAL and request["args"] is not None for request in requests):
        return None
    return [
        {
            "id": CALL + request["request_id"],
            "type": "function_call",
            "call_id": request["request_id"],
            "name": request["tool_name"],
            "arguments": to_json(request["args"]).decode(),
            "status": COMPLETED,
        }
        for request in requests
    ]


def message_id(row: RunRow, number: int = 0) -> str:
    """Name the message of the answer; one that takes the place of another has a number."""
    return f"{MESSAGE}{row.message_id.hex}" + (f"_{number}" if number else "")


def message_item(item_id: str, text: str | None, status: str) -> dict[str, Any]:
    """Show an answer, which may not have begun."""
    content = [] if text is None else [text_part(text)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str) -> dict[str, Any]:
    """Show the text of an answer."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def usage_of_response(stored: object) -> dict[str, Any]:
    """Say what a run used as a response does."""
    used = {kind: int(count or 0) for kind, count in whole_usage(stored).items()}
    return {
        "input_tokens": used["input_tokens"],
        "input_tokens_details": {
            "cached_tokens": used["cache_read_tokens"],
            "cache_write_tokens": used["cache_write_tokens"],
        },
        "output_tokens": used["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["input_tokens"] + used["output_tokens"],
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else to_json(value).decode()


def is_waiting_for_calls(row: RunRow) -> bool:
    """Tell whether a run waits for nothing but results from its client."""
    return row.status == RunStatus.WAITING and calls_of(open_requests(row)) is not None
