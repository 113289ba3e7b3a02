"""Agents that wait for a person or for another system: which need an answer that this service cannot give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from pydantic_ai import DeferredToolRequests, PendingModelResponse
from pydantic_ai._output import types_from_output_spec  # pyright: ignore[reportPrivateUsage]
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import AbstractCapability, Hooks, WrapperCapability
from pydantic_ai.toolsets import (
    AbstractToolset,
    ApprovalRequiredToolset,
    CombinedToolset,
    ExternalToolset,
    FunctionToolset,
    WrapperToolset,
)

_NO_HANDLER = frozenset({AbstractCapability.handle_deferred_tool_calls, WrapperCapability.handle_deferred_tool_calls})


class CannotWait(Exception):
    """The rest of a sentence that begins with the agent's name."""


def check_waiting(agent: AbstractAgent[Any, Any]) -> None:
    """See that an agent does not wait for answers, or has a capability that gives them at once.

    What shows only in a run, as a tool that raises `ApprovalRequired`, ends the run.

    Raises:
        CannotWait: it would end its runs with calls that nobody answers.
    """
    outputs = list(types_from_output_spec(agent.output_type))
    if PendingModelResponse in outputs:
        raise CannotWait(
            "has PendingModelResponse among its output types, but a run that its provider has not finished cannot be "
            "resumed here: take it out, so that runs wait for the provider"
        )
    if any(map(_handles, capabilities_of(agent.root_capability))):
        return
    remedy = "which this service cannot give: add a HandleDeferredToolCalls capability that decides"
    if DeferredToolRequests in outputs:
        raise CannotWait(
            "has DeferredToolRequests among its output types, so it may wait for approvals or results from outside, "
            f"{remedy}"
        )
    for name, what in _waiting_tools(agent.toolsets):
        raise CannotWait(f"has {name}, which waits for {what}, {remedy}")


def capabilities_of(capability: AbstractCapability[Any]) -> list[AbstractCapability[Any]]:
    """List the capabilities that one is composed of."""
    leaves: list[AbstractCapability[Any]] = []
    capability.apply(leaves.append)
    return leaves


def _handles(capability: AbstractCapability[Any]) -> bool:
    method = type(capability).handle_deferred_tool_calls
    if method is Hooks.handle_deferred_tool_calls:
        return bool(cast("Any", capability)._get("handle_deferred_tool_calls"))  # noqa: SLF001  (it tells no other way)
    return method not in _NO_HANDLER


def _waiting_tools(toolsets: Any) -> Iterator[tuple[str, str]]:
    """List the tools that wait, and for what."""
    for toolset in toolsets:
        match toolset:
            case ApprovalRequiredToolset():
                yield "an ApprovalRequiredToolset", "an approval"
            case ExternalToolset():
                names = ", ".join(tool.name for tool in toolset.tool_defs)
                yield f"an ExternalToolset ({names})", "results from outside"
            case FunctionToolset():
                for name, tool in toolset.tools.items():
                    if tool.requires_approval:
                        yield f"the tool {name}", "an approval"
            case WrapperToolset():
                yield from _waiting_tools([toolset.wrapped])
            case CombinedToolset():
                yield from _waiting_tools(toolset.toolsets)
            case AbstractToolset() | _:
                pass
