"""Every request has an id, which every response and every problem carries."""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.clock import new_id

HEADER = "X-Request-ID"
_KEY = "agent_relay.request_id"
_GIVEN = re.compile(rb"[!-~]{1,128}")


class RequestId:
    """ASGI middleware: take the caller's id, or make one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the request, and have the response say so."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, named)


def request_id_of(scope: Scope) -> str:
    """Tell the request's id; asked again, it is the same."""
    if _KEY not in scope:
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        scope[_KEY] = given[0].decode() if len(given) == 1 and _GIVEN.fullmatch(given[0]) else str(new_id())
    return scope[_KEY]
