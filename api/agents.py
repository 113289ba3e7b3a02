"""Routes: the agents that can be asked."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select

from api.dependencies import Service
from api.identity import Caller
from api.problems import responses
from api.resources import Agent
from api.strict import StrictRoute
from shared import tables

router = APIRouter(prefix="/agents", tags=["agents"], route_class=StrictRoute)


@router.get("", summary="List the agents", response_description="The agents.", responses=responses())
async def list_agents(service: Service, _: Caller) -> list[Agent]:
    """Every agent that a worker has registered, with the JSON Schema of its output."""
    async with service.database.connect() as connection:
        rows = await connection.execute(select(tables.Agent).order_by(tables.Agent.agent_type))
    return [
        Agent(agent_type=row.agent_type, description=row.description, output_schema=row.output_schema) for row in rows
    ]
