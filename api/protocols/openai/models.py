"""Routes: the agents that the key may ask, as models."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter
from sqlalchemy import text

from agent_relay.api.dependencies import Database
from agent_relay.api.requests.identity import Caller
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.shared.errors import UnknownAgent

router = APIRouter(prefix="/models", route_class=StrictRoute)

_MODELS = text("SELECT agent_type, registered_at FROM agents ORDER BY agent_type")
_MODEL = text("SELECT registered_at FROM agents WHERE agent_type = :agent_type")


@router.get("")
async def list_models(database: Database, caller: Caller) -> dict[str, Any]:
    """List the agents that the key may ask."""
    async with database.connect() as connection:
        rows = (await connection.execute(_MODELS)).all()
    models = [_model(row.agent_type, row.registered_at) for row in rows if caller.may_ask(row.agent_type)]
    return {"object": "list", "data": models}


@router.get("/{model}")
async def read_model(model: str, database: Database, caller: Caller) -> dict[str, Any]:
    """Show an agent."""
    registered_at = None
    if caller.may_ask(model) and "\0" not in model:
        async with database.connect() as connection:
            registered_at = await connection.scalar(_MODEL, {"agent_type": model})
    if registered_at is None:
        raise UnknownAgent(model, caller.allowed_agents)
    return _model(model, registered_at)


def _model(agent_type: str, registered_at: datetime) -> dict[str, Any]:
    return {
        "id": agent_type,
        "object": "model",
        "created": int(registered_at.timestamp()),
        "owned_by": "agent-relay",
    }
