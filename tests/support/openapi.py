"""The OpenAPI document, as it is with the usual settings; `python -m tests.support.openapi` prints it."""

from __future__ import annotations

import json
import sys
from typing import Any

from agent_relay.api.app import create_app
from agent_relay.shared.settings import Settings


def openapi_document() -> dict[str, Any]:
    """Make the document, without a server."""
    settings = Settings(database_url="postgresql://nowhere/none", redis_url="redis://nowhere")
    return create_app(settings, 0).openapi()


if __name__ == "__main__":
    json.dump(openapi_document(), sys.stdout)
