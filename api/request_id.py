"""Every request has an id, which its response, its problem and its log lines carry; its response is counted.

The heads of all responses pass here, so the headers of `safe_headers.py` are added here, too.
"""

from __future__ import annotations

import re
from http import HTTPMethod

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_relay.api import security_headers
from agent_relay.shared import logs
from agent_relay.shared.clock import new_id
from agent_relay.shared.metrics import HTTP_REQUESTS

HEADER = "X-Request-ID"
_KEY = "agent_relay.request_id"
_GIVEN = re.compile(rb"[!-~]{1,128}")


class RequestId:
    """ASGI middleware: take the caller's id, or make one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give the request an id, add it to the response, and count the request by its result."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        logs.REQUEST_ID.set(request_id)  # Of the task that answers this request and no other.
        method, status = scope["method"], ""

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
                security_headers.complete(message)
                status = str(message["status"])
                HTTP_REQUESTS.labels(method_of(method), route_of(scope), status).inc()
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            if not status:
                HTTP_REQUESTS.labels(method_of(method), route_of(scope), status).inc()


def route_of(scope: Scope) -> str:
    """Tell the template of the route that answers, empty where none does.

    FastAPI keeps the prefix of a router that was included to itself, so the values of the path become names again. The
    path under which a proxy publishes the API is left out.
    """
    if "route" not in scope:
        return ""
    steps = scope["path"].removeprefix(scope.get("root_path", "")).split("/")
    for name, value in scope.get("path_params", {}).items():
        place = len(steps) - 1 - steps[::-1].index(value) if value in steps else 0
        steps[place] = f"{{{name}}}" if place else steps[place]
    return "/".join(steps)


def method_of(method: str) -> str:
    """Tell the method, of which callers can make up any number."""
    return method if method in HTTPMethod.__members__ else "other"


def request_id_of(scope: Scope) -> str:
    """Tell the request's id; asked again, it is the same."""
    if _KEY not in scope:
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        scope[_KEY] = given[0].decode() if len(given) == 1 and _GIVEN.fullmatch(given[0]) else str(new_id())
    return scope[_KEY]
