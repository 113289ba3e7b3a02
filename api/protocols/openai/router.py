"""All routes of this protocol, and what the application must know of it."""

from __future__ import annotations

from fastapi import APIRouter

from agent_relay.api.protocols.openai import chat, conversations, files, models, responses
from agent_relay.api.protocols.openai.errors import SHOULD_RETRY, error_response

PREFIX = "/v1"
ERRORS = {f"{PREFIX}/": error_response}
"""How errors under this path are written."""
HEADERS = [SHOULD_RETRY]
"""What pages of other origins may read of a response, besides what they may read of all."""

router = APIRouter(prefix=PREFIX, include_in_schema=False)
for _routes in (models, chat, responses, conversations, files):
    router.include_router(_routes.router)
