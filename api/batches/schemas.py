"""The resources of batches, as clients send and see them."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Path
from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import models_json_schema

from agent_relay.api.schemas import (
    AgentType,
    Attachments,
    DeadlineSeconds,
    Metadata,
    Options,
    Request,
    StartAfterSeconds,
    StartAt,
    WaitSeconds,
    WebhookUrl,
    one_start,
)

BatchId = Annotated[UUID, Path(description="The batch's id.")]

LONGEST_CUSTOM_ID = 128


def _whole(value: object) -> object:
    """Read `2.0` as JSON Schema does: it is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_MaxRunning = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class NewItem(Request):
    """One query of a batch."""

    custom_id: str = Field(min_length=1, max_length=LONGEST_CUSTOM_ID)
    """Your own id of it, which no other item of the batch has."""
    query: str = Field(min_length=1)
    """The query."""
    attachments: Attachments | None = None
    """Files that belong to it."""
    metadata: Metadata = Field(default_factory=dict)
    """Anything of yours; the agent's dependencies may use it."""


class BatchHead(Request):
    """The fields of a batch for all its items."""

    agent_type: AgentType
    """The agent to ask, each time without a memory; see `GET /agents`."""
    metadata: Metadata = Field(default_factory=dict)
    """Anything of yours, about the batch."""
    options: Options | None = None
    """The chosen options of the agent for all of its runs."""
    max_running: Annotated[_MaxRunning, BeforeValidator(_whole)] | None = None
    """How many of its runs may run at once."""
    start_at: StartAt = None
    """None of its runs begins before this time, at most 90 days from now; one that has passed is now."""
    start_after_s: StartAfterSeconds | None = None
    """Instead of `start_at`: seconds from acceptance."""
    deadline_s: DeadlineSeconds | None = None
    """Seconds from acceptance, or from its start, after which runs that have not ended fail as `deadline_exceeded`."""
    wait_deadline_s: WaitSeconds | None = None
    """Seconds that each run may wait for answers; then it fails as `answer_overdue`. 7 days, unless the service has
    another default."""
    webhook_url: WebhookUrl | None = None
    """Where to post the batch once it has ended, or all that is left of it waits, see *Webhooks*: a public https
    address."""

    @model_validator(mode="after")
    def _one_start(self) -> BatchHead:
        one_start(self.start_at, self.start_after_s)
        return self


class NewBatch(BatchHead):
    """Many queries to one agent, accepted together or not at all."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "agent_type": "bank_support",
                    "items": [
                        {"custom_id": "row-1", "query": "What is my balance?"},
                        {"custom_id": "row-2", "query": "I lost my card", "metadata": {"channel": "mail"}},
                    ],
                }
            ]
        }
    )

    items: list[NewItem] = Field(min_length=1)
    """The queries."""


SCHEMAS: dict[str, Any] = models_json_schema([(NewBatch, "validation")], ref_template="#/components/schemas/{model}")[
    1
]["$defs"]
"""The OpenAPI description of a body that FastAPI does not read."""

BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/NewBatch"}},
        "application/x-ndjson": {"schema": {"$ref": "#/components/schemas/NewItem"}},
    },
}
"""How the route that reads it documents it; of NDJSON, a line."""
