"""The API's documentation: what the OpenAPI document says besides the routes, and a page that shows it without a network.

The page's script and style lie in the wheel of fastapi-swagger, which follows the releases of Swagger UI; its code is
never run.
"""

from __future__ import annotations

import base64
import re
from enum import StrEnum
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from api.batches.resources import SCHEMAS
from api.identity import OPERATOR_SCHEMES, SECURITY_SCHEMES
from api.problems import MEDIA_TYPE, Problem, example
from shared import VERSION

DESCRIPTION = """
Ask a [pydantic-ai](https://ai.pydantic.dev) agent over HTTP, watch its validated answer grow, keep the conversation.

Every call needs two headers: `X-API-Key`, a key of your tenant, and `X-User-ID`, the UUID of your end user, whom threads
and runs belong to; *Authorize* sends them for you here. What belongs to somebody else does not exist.

Errors are problem documents (RFC 9457): programs look at `code`, people read `detail`. A field or parameter that is not
known is refused. Every response carries `X-Request-ID`, yours if you sent one. Lists are pages: go on with `next_cursor`.

## The stream

`POST /agent/stream` and `GET /runs/{id}/stream` tell a run's events, as SSE if you accept `text/event-stream`, else as
NDJSON. Every event is an object `{"id", "event", …}`; ids are opaque and only grow.

| event | fields | meaning |
| --- | --- | --- |
| `message_created` | `message: {id, role}`, `run_id` | the query is stored |
| `message_started` | `message_id`, `attempt`, `reason` | a worker begins the answer; above attempt 1 it begins again: forget the earlier partials |
| `tool_call` | `message_id`, `tool_call_id`, `tool_name`, `args` | the agent calls a tool |
| `tool_result` | `message_id`, `tool_call_id`, `tool_name`, `content` | what it returned |
| `text_delta` | `message_id`, `token` | the whole validated partial output so far, as JSON text (of a text agent: the text); it replaces the one before |
| `message_complete` | `message_id`, `usage` | the answer is stored; the last `token` equals it |
| `error` | `error: {code, message, retryable}` | the run failed (in SSE the event is named `run_failed`) |
| `cancelled` | `message_id`, `partial` | the run was cancelled |
| `gap` | | what came before is gone; the next `text_delta` is complete in itself |
| `done` | `status` | the run has ended and everything was told |

A stream that reached the run's end closes with `done`; one without it was cut: resume it with `Last-Event-ID` or `?after=`.

With `?deltas=true`, `text_delta` says `drop` and `append` instead of `token` wherever it can: take `drop` characters, which
are ASCII, off the end of the text that you have, then append. The first of a connection and of an attempt is always whole.

A browser's `EventSource` cannot send headers: give it the `url` of a ticket from `POST /runs/{id}/stream-ticket`.

## Asking again

A call whose answer was lost can be sent again without asking twice: give every POST that creates something an
`Idempotency-Key` of your own, a UUID for example, and send the same key and the same bytes again. Later copies are answered
with what the first created and say `Idempotency-Replayed: true`; a blocking call waits with the first, a stream follows the
same run from its beginning. The same key with another body is refused (422), and while the first call has not been stored
yet, a copy is asked to come later (409). What was refused is not kept: that key is free. What was deleted since is a 404.
Keys are yours alone, hold for one path, and are kept for 24 hours, unless the service says otherwise.

## Webhooks

A run or a batch with a `webhook_url` is posted there once it has ended, as `{"type": "run.succeeded", "timestamp": …,
"data": {the run}}`, signed as [Standard Webhooks](https://www.standardwebhooks.com) says: verify it with any library of
that name and the secret of `GET /webhooks/secret`. Any 2xx is delivery. Everything else is tried again for hours, under the same `webhook-id`, except
redirects, which are not followed and fail, and 410, after which nothing more is sent to that URL. `GET /webhooks/deliveries`
tells how far each is. Only public https addresses are called.

## Attempts

A run outlives its worker: if that dies, another one begins the answer again, as the next attempt. So a tool may be called
more than once for one run; it can read `run_id` and `attempt`, and use them as its own idempotency key.
"""

TAGS = [
    {"name": "ask", "description": "Ask and stay on the line, for the whole answer or for every partial of it."},
    {
        "name": "runs",
        "description": "One query each, from its acceptance to its end: ask now, and look or listen later.",
    },
    {"name": "batches", "description": "Many queries that are accepted together, and answered one by one."},
    {"name": "threads", "description": "Conversations: the next query is answered knowing the ones before."},
    {
        "name": "webhooks",
        "description": "Being told when a run or a batch has ended: the secret, and what was delivered.",
    },
    {"name": "agents", "description": "What can be asked."},
    {"name": "operator", "description": "For operators, of all tenants: with a key of `OPERATOR_KEYS`, and no user."},
    {"name": "health", "description": "For operators and their machines; no key is asked for."},
]

_RUN, _QUERY, _ANSWER = (f"0198c5a4-7c9e-7000-8000-0000000000{end}" for end in ("a1", "b1", "b2"))

_EVENTS: list[dict[str, Any]] = [
    {"id": "0-1", "event": "message_created", "message": {"id": _QUERY, "role": "user"}, "run_id": _RUN},
    {"id": "1-1", "event": "message_started", "message_id": _ANSWER, "attempt": 1, "reason": "first"},
    {"id": "1-9", "event": "text_delta", "message_id": _ANSWER, "token": '{"support_advice":"Your bal"}'},
    {
        "id": "2-0",
        "event": "message_complete",
        "message_id": _ANSWER,
        "usage": {"requests": 1, "input_tokens": 50, "output_tokens": 12},
    },
    {"id": "2-1", "event": "done", "status": "succeeded"},
]

_SSE = """\
retry: 1000

id: 2-1
event: done
data: {"id":"2-1","event":"done","status":"succeeded"}

"""

STREAM: dict[str, Any] = {
    "description": "The run's events, see *The stream* above.",
    "content": {
        "application/x-ndjson": {
            "schema": {
                "type": "object",
                "description": "An event. There is one a line; an empty line is a keep-alive.",
            },
            "examples": {event["event"]: {"value": event} for event in _EVENTS},
        },
        "text/event-stream": {
            "schema": {"type": "string", "description": "The same objects, as `data`. A comment is a keep-alive."},
            "example": _SSE,
        },
    },
}
"""How a route says that it answers with a stream."""

_RESULT: dict[str, Any] = {
    "cursor": 1,
    "custom_id": "row-1",
    "run_id": _RUN,
    "status": "succeeded",
    "output": {"support_advice": "Your balance is $1123.45."},
    "error": None,
    "usage": {"requests": 1, "input_tokens": 50, "output_tokens": 12},
}
_COUNTS = {
    "counts": {"total": 1, "queued": 0, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 0},
    "status": "completed",
}

RESULTS: dict[str, Any] = {
    "description": "A result a line; of a batch that is followed also lines of counts, of which the last says that it"
    " has ended. Without that one the stream was cut: go on after the last `cursor`.",
    "content": {
        "application/x-ndjson": {
            "schema": {"type": "object", "description": "A result, or counts. An empty line is a keep-alive."},
            "examples": {"result": {"value": _RESULT}, "counts": {"value": _COUNTS}},
        },
    },
}
"""How a route says that it answers with the results of a batch."""

router = APIRouter(include_in_schema=False)


class _Asset(StrEnum):
    SCRIPT = "swagger-ui-bundle.js"
    STYLE = "swagger-ui.css"
    ICON = "favicon-32x32.png"


class Documented(FastAPI):
    """An application that documents itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            title="agent-relay",
            version=VERSION,
            description=DESCRIPTION,
            openapi_tags=TAGS,
            openapi_url="/openapi.json",
            docs_url=None,
            redoc_url=None,
            generate_unique_id_function=lambda route: route.name,
            **options,
        )

    def openapi(self) -> dict[str, Any]:
        """Describe the API; what FastAPI cannot say is put right."""
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["schemas"] |= SCHEMAS
            document["components"]["securitySchemes"] = {**SECURITY_SCHEMES, **OPERATOR_SCHEMES}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    if path.startswith("/api/"):
                        schemes = OPERATOR_SCHEMES if "operator" in operation["tags"] else SECURITY_SCHEMES
                        operation["security"] = [{scheme: [] for scheme in schemes}]
                    operation["responses"] = {
                        status: _as_problem(status, response)
                        for status, response in sorted(operation["responses"].items())
                    }
        return super().openapi()


def _as_problem(status: str, response: dict[str, Any]) -> dict[str, Any]:
    """Give a problem its own media type: FastAPI knows one for all responses of a route."""
    contents = list(response.get("content", {}).values())
    if [content.get("schema") for content in contents] != [{"$ref": f"#/components/schemas/{Problem.__name__}"}]:
        return response
    return {**response, "content": {MEDIA_TYPE: {**contents[0], "example": example(int(status))}}}


_SCRIPT = """
<script>
    localStorage.removeItem("authorized");  // Keys that the page of an earlier version kept.
    // Each field of the dialog takes the focus as it appears; people begin with the first.
    let dialog = null;
    new MutationObserver(() => {
        const now = document.querySelector(".dialog-ux");
        if (now !== dialog && (dialog = now)) dialog.querySelector("input")?.focus();
    }).observe(document.body, {childList: true, subtree: true});
</script>
"""


@router.get("/docs")
async def page() -> HTMLResponse:
    """Show the document. All addresses are relative, so that the API may lie behind any prefix."""
    shown = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="agent-relay",
        swagger_js_url=f"docs/{_Asset.SCRIPT}",
        swagger_css_url=f"docs/{_Asset.STYLE}",
        swagger_favicon_url=f"docs/{_Asset.ICON}",
        swagger_ui_parameters={
            "persistAuthorization": False,
            "tryItOutEnabled": True,
            "defaultModelsExpandDepth": 0,
            "validatorUrl": None,
        },
    )
    html = bytes(shown.body).decode().replace("</body>", f"{_SCRIPT}</body>")
    return HTMLResponse(html, headers={"Content-Security-Policy": _policy(html)})


def _policy(html: str) -> str:
    """Allow the page its own files, its own scripts by their hashes, and calls of this API."""
    scripts = [sha256(script.encode()).digest() for script in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)]
    hashes = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in scripts)
    return (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@router.get("/docs/{asset}")
async def read_asset(asset: _Asset) -> FileResponse:
    """Serve a part of the page."""
    return FileResponse(_assets() / asset, headers={"Cache-Control": "max-age=86400"})


def _assets() -> Path:
    spec = find_spec("fastapi_swagger")
    assert spec is not None  # noqa: S101  (a dependency)
    assert spec.submodule_search_locations is not None  # noqa: S101
    return Path(spec.submodule_search_locations[0]) / "resources"
