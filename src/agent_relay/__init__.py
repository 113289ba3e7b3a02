"""Serve pydantic-ai agents over HTTP: what authors of agents import.

The folders beside this file are links to the top level of the repository (`api/`, `worker/`, `shared/`, …), so that the
code is imported under one name that collides with nobody's: `agent_relay.api`, `agent_relay.worker`, …
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_relay.worker.catalog import RunOptions, RunScope, ServedAgent, ToolEvents
    from agent_relay.worker.models.openai_client import windowed_client
    from agent_relay.worker.sub_agents import sub_agent_events

__all__ = ["RunOptions", "RunScope", "ServedAgent", "ToolEvents", "sub_agent_events", "windowed_client"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: pydantic-ai is not needed by whoever imports another part of the package."""
    if name == "windowed_client":
        from agent_relay.worker.models.openai_client import windowed_client  # noqa: PLC0415

        return windowed_client
    if name == "sub_agent_events":
        from agent_relay.worker.sub_agents import sub_agent_events  # noqa: PLC0415

        return sub_agent_events
    if name in __all__:
        from agent_relay.worker import catalog  # noqa: PLC0415

        return getattr(catalog, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
