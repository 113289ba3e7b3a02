"""Routes: the agents that can be asked."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import text

from api.dependencies import Service
from api.identity import Caller
from api.problems import responses
from api.resources import Agent
from api.strict import StrictRoute
from shared.served import served

router = APIRouter(prefix="/agents", tags=["agents"], route_class=StrictRoute)

_AGENTS = text(f"""
    SELECT agents.*, {served("agents.agent_type")} AS served FROM agents ORDER BY agent_type
""")  # noqa: S608  (constants)


@router.get("", summary="List the agents", response_description="The agents.", responses=responses())
async def list_agents(service: Service, caller: Caller) -> list[Agent]:
    """The agents that your key may ask: what each is for, the JSON Schema of its output, and whether it is served."""
    async with service.database.connect() as connection:
        rows = (await connection.execute(_AGENTS)).all()
    return [
        Agent(
            agent_type=row.agent_type,
            description=row.description,
            output_schema=row.output_schema,
            served=row.served,
        )
        for row in rows
        if caller.may_ask(row.agent_type)
    ]
