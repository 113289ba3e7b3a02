"""HEAD is answered as GET is, without the body (RFC 9110, 9.3.2); of a stream, too, it takes the headers only."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Head:
    """ASGI middleware: answers HEAD as GET, so that routes need not handle it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask for what GET would get, and hang up once its headers are there."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        answered = asyncio.Event()
        as_get: Scope = {**scope, "method": "GET"}

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope.update({name: as_get[name] for name in ("route", "path_params") if name in as_get})
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                answered.set()

        async def hang_up() -> Message:
            await answered.wait()
            return {"type": "http.disconnect"}

        await self._app(as_get, hang_up, send_headers)
