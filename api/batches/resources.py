"""The resources of batches, as clients send and see them."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Path
from pydantic import ConfigDict, Field
from pydantic.json_schema import models_json_schema

from api.resources import DeadlineSeconds, Metadata, Request, WebhookUrl

BatchId = Annotated[UUID, Path(description="The batch's id.")]

LONGEST_CUSTOM_ID = 128


class NewItem(Request):
    """One query of a batch."""

    custom_id: str = Field(min_length=1, max_length=LONGEST_CUSTOM_ID)
    """Your own id of it, which no other item of the batch has."""
    query: str = Field(min_length=1)
    """What is asked."""
    metadata: Metadata = Field(default_factory=dict)
    """Anything of yours; the agent's dependencies may use it."""


class BatchHead(Request):
    """What a batch says of all its items."""

    agent_type: str = Field(max_length=63)
    """The agent to ask, each time without a memory; see `GET /agents`."""
    metadata: Metadata = Field(default_factory=dict)
    """Anything of yours, about the batch."""
    max_running: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] | None = None
    """How many of its runs may run at once."""
    deadline_s: DeadlineSeconds | None = None
    """Seconds from acceptance after which runs that have not ended fail as `deadline_exceeded`."""
    webhook_url: WebhookUrl | None = None
    """Where to post the batch once it has ended, see *Webhooks*: a public https address."""


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
"""What OpenAPI must be told of a body that FastAPI does not read."""

BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/NewBatch"}},
        "application/x-ndjson": {"schema": {"$ref": "#/components/schemas/NewItem"}},
    },
}
"""How the route that reads it documents it; of NDJSON, a line."""
