"""A line of the log for each request, if the setting is on: `access.answered`, once the response has ended.

Query strings are left out: they may hold tickets.
"""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_relay.api.request_id import method_of, request_id_of, route_of

log = logging.getLogger(__name__)

LONGEST_PATH = 512


class AccessLog:
    """ASGI application around another one: the outermost, so that it sees streams to their end, too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and write the line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, sent = time.monotonic(), 0
        method, path, request_id = method_of(scope["method"]), _path(scope), request_id_of(scope)
        route, status, ended = "", "", "cut"

        async def counted(message: Message) -> None:
            nonlocal sent, route, status, ended
            if message["type"] == "http.response.start":
                route, status = route_of(scope), str(message["status"])
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
                ended = "cut" if message.get("more_body") else "whole"
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            log.info(
                "access.answered method=%s path=%s route=%s status=%s seconds=%.3f bytes=%d response=%s request_id=%s",
                method,
                path,
                route,
                status,
                time.monotonic() - began,
                sent,
                ended,
                request_id,
            )


def _path(scope: Scope) -> str:
    """Write the path, without the query, so that it cannot break the line."""
    path: Any = scope["path"]
    return quote(path, safe="/:@-._~", errors="replace")[:LONGEST_PATH]
