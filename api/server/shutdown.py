"""A call that is cut short because the process stops is refused for now, so that its caller asks another process."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_relay.api.problems import respond, unavailable


class CutShort:
    """ASGI middleware: answers 503 to requests that the server cancels because its time to stop is over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 503 where nothing has been answered yet."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if began:
                raise
            refused = unavailable("This process stops before it could answer.")
            await respond(Request(scope), refused)(scope, receive, send)
