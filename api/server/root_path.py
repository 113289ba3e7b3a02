"""`ROOT_PATH`: the API behind a proxy that publishes it under a path, whether the proxy strips that path or not."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FIRST_STEPS = frozenset(
    {"", "api", "batches", "console", "docs", "health", "metrics", "openapi.json", "ops", "sign-in"}
)
"""The beginnings of the paths of this application; empty for the page at `/`."""
FIRST_TWO_STEPS = frozenset({"v1/chat", "v1/conversations", "v1/files", "v1/models", "v1/responses"})
"""The same of OpenAI's paths: `/api` as the root path and `/v1` of these are no `/api/v1` of ours."""


def canonical_path(request: Request) -> str:
    """Return the one spelling of a path that all requests for the same thing have in common.

    Names in our paths are lower-case, and what changes in them are UUIDs, which may be written in capitals.
    """
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", "")).lower()


def _is_ours(path: str) -> bool:
    first, *others = path[1:].split("/", 2)
    return first in FIRST_STEPS or "/".join([first, *others[:1]]) in FIRST_TWO_STEPS


class RootPath:
    """ASGI middleware: give every request the path that its caller wrote, which begins with the root path."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the root path where the proxy has stripped it.

        A path of ours may begin as the root path does (`ROOT_PATH=/api`), so what follows it decides.
        """
        if scope["type"] == "http":
            path: str = scope["path"]
            if path == self._root_path and path[1:] not in FIRST_STEPS:  # Addresses in the pages are relative.
                await RedirectResponse(f"{path}/", 308)(scope, receive, send)
                return
            rest = path.removeprefix(self._root_path)
            if rest == path or not _is_ours(rest):
                scope["path"] = self._root_path + path
            scope["root_path"] = self._root_path  # The scope is changed in place: streams leave their rest in it.
        await self._app(scope, receive, send)
