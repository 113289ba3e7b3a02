"""Routes: the agents that can be asked."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import text

from agent_relay.api.dependencies import Database
from agent_relay.api.problems import responses
from agent_relay.api.requests.identity import Caller
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.schemas import Agent, Capabilities
from agent_relay.shared.served_agents import served

router = APIRouter(prefix="/agents", tags=["agents"], route_class=StrictRoute)

_AGENTS = text(f"""
    SELECT agents.*, {served("agents.agent_type")} AS served FROM agents ORDER BY agent_type
""")  # noqa: S608  (constants)


@router.get("", summary="List the agents", response_description="The agents.", responses=responses())
async def list_agents(database: Database, caller: Caller) -> list[Agent]:
    """The agents that your key may ask, with descriptions, examples, output schemas, and whether they are served."""
    async with database.connect() as connection:
        rows = (await connection.execute(_AGENTS)).all()
    return [
        Agent(
            agent_type=row.agent_type,
            description=row.description,
            examples=row.examples,
            output_schema=row.output_schema,
            options_schema=row.options_schema,
            capabilities=Capabilities(
                attachments=["*/*"] if row.attachments is None else row.attachments,
                waiting=bool(row.waiting),
                reasoning=bool(row.reasoning),
            ),
            served=row.served,
        )
        for row in rows
        if caller.may_ask(row.agent_type)
    ]
