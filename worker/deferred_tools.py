"""Agents whose tools wait for a person or for another system: their requests, and how they go on once answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

from pydantic_ai import DeferredToolRequests, DeferredToolResults, PendingModelResponse, ToolApproved, ToolDenied
from pydantic_ai._output import types_from_output_spec  # pyright: ignore[reportPrivateUsage]
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse, ToolCallPart
from pydantic_ai.output import OutputSpec
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import (
    AbstractToolset,
    ApprovalRequiredToolset,
    CombinedToolset,
    ExternalToolset,
    FunctionToolset,
    WrapperToolset,
)
from pydantic_core import from_json

from agent_relay.shared.database.tables import RequestKind
from agent_relay.shared.runs.wait import DeferredCall
from agent_relay.worker.storable import as_json, storable

_PROMPTS = ("prompt", "question", "message")
"""Where a tool has its prompt for people: in its metadata; of a question, also in its arguments."""
_NOTHING: tuple[dict[str, Any], ...] = ({}, {"type": "null"})
"""Schemas of results without content: a function that only raises `CallDeferred` is often annotated with `None`."""


class CannotWait(Exception):
    """The rest of a sentence that begins with the agent's name."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """The data with which a run goes on after its wait."""

    messages: list[ModelMessage]
    """All of this run so far; the last calls are open."""
    results: DeferredToolResults
    """The answer."""


def check_waiting(agent: AbstractAgent[Any, Any]) -> None:
    """See that an agent does not end its runs before its provider has finished.

    Raises:
        CannotWait: it does.
    """
    if PendingModelResponse in types_from_output_spec(agent.output_type):
        raise CannotWait(
            "has PendingModelResponse among its output types, but a run that its provider has not finished cannot be "
            "resumed here: take it out, so that runs wait for the provider"
        )


def may_wait(agent: AbstractAgent[Any, Any]) -> bool:
    """Return whether runs of an agent may wait, as far as its output type and its first toolsets show."""
    return DeferredToolRequests in types_from_output_spec(agent.output_type) or any(map(_asks, agent.toolsets))


def _asks(toolset: AbstractToolset[Any]) -> bool:
    match toolset:
        case ApprovalRequiredToolset() | ExternalToolset():
            return True
        case FunctionToolset():
            return any(tool.requires_approval for tool in toolset.tools.values())
        case WrapperToolset():
            return _asks(toolset.wrapped)
        case CombinedToolset():
            return any(map(_asks, toolset.toolsets))
        case _:
            return False


def capabilities_of(capability: AbstractCapability[Any]) -> list[AbstractCapability[Any]]:
    """List the capabilities that one is composed of."""
    leaves: list[AbstractCapability[Any]] = []
    capability.apply(leaves.append)
    return leaves


def without_requests(output_type: OutputSpec[Any]) -> OutputSpec[Any]:
    """Take `DeferredToolRequests` out of an output type: it is no answer that callers see."""
    spec = cast("Any", output_type)
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        members = list(cast("Sequence[Any]", spec))
    elif get_origin(spec) in {Union, UnionType}:
        members = list(get_args(spec))
    else:
        return output_type
    left = [member for member in members if member is not DeferredToolRequests]
    if len(left) == len(members):
        return output_type
    return left[0] if len(left) == 1 else left


def calls_of(
    requests: DeferredToolRequests, response: ModelResponse, tools: Mapping[str, ToolDefinition]
) -> list[DeferredCall]:
    """Write the calls that a run waits for as they are stored, each with the schema of its answer.

    They are in the order of the response that makes them.
    """
    places = {call.tool_call_id: place for place, call in enumerate(response.tool_calls)}
    parts = sorted([*requests.approvals, *requests.calls], key=lambda part: places.get(part.tool_call_id, len(places)))
    return [
        _call(part, RequestKind(requests.kind(part.tool_call_id)), requests, tools.get(part.tool_name))
        for part in parts
    ]


def _call(
    part: ToolCallPart, kind: RequestKind, requests: DeferredToolRequests, tool: ToolDefinition | None
) -> DeferredCall:
    metadata = requests.metadata.get(part.tool_call_id)
    args = part.args_as_dict()
    return DeferredCall(
        request_id=storable(part.tool_call_id),
        kind=kind,
        tool_name=storable(part.tool_name),
        args=as_json(args),
        prompt=_prompt({**(args if kind is RequestKind.QUESTION else {}), **(metadata or {})}),
        schema=_schema(kind, metadata or {}, tool),
        metadata=None if metadata is None else as_json(metadata),
    )


def _prompt(said: Mapping[str, Any]) -> str | None:
    return next((storable(text) for name in _PROMPTS if isinstance(text := said.get(name), str)), None)


def _schema(kind: RequestKind, metadata: Mapping[str, Any], tool: ToolDefinition | None) -> str | None:
    """Choose the schema of an answer: the tool's own metadata may name one of the result."""
    if kind is RequestKind.APPROVAL:
        schema = None if tool is None else tool.parameters_json_schema
    elif isinstance(metadata.get("schema"), dict):
        schema = metadata["schema"]
    else:
        schema = None if tool is None else tool.return_schema
    return None if schema is None or schema in _NOTHING else as_json(schema)


def continuation_of(rows: Sequence[Any]) -> Continuation:
    """Read the data with which a run goes on.

    Raises:
        ValueError: another version wrote it, or it was changed.
    """
    messages = ModelMessagesTypeAdapter.validate_json(rows[0].messages)
    last = next((message for message in reversed(messages) if isinstance(message, ModelResponse)), None)
    ids = {storable(call.tool_call_id): call.tool_call_id for call in (last.tool_calls if last else ())}
    results = DeferredToolResults()
    for row in rows:
        if (call_id := ids.get(row.request_id)) is None:
            raise ValueError(f"the messages hold no call {row.request_id!r}")
        answer: dict[str, Any] = from_json(row.answer or "{}")
        if row.kind == RequestKind.APPROVAL:
            results.approvals[call_id] = _decision(answer)
        else:
            results.calls[call_id] = ToolFailed(answer["error"]) if "error" in answer else answer.get("result")
        if row.metadata is not None:
            results.metadata[call_id] = from_json(row.metadata)
    return Continuation(messages, results)


def _decision(answer: Mapping[str, Any]) -> ToolApproved | ToolDenied:
    if answer.get("approve") is True:
        return ToolApproved(override_args=answer.get("args"))
    message = answer.get("message")
    return ToolDenied() if message is None else ToolDenied(message)
