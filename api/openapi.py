"""The API's documentation: the texts of the OpenAPI document beside the routes, and a page that needs no network.

The page's script and style lie in the wheel of fastapi-swagger, which follows the releases of Swagger UI; its code is
never run.
"""

from __future__ import annotations

import base64
import re
from copy import deepcopy
from enum import StrEnum
from hashlib import sha256
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from agent_relay.api.batches.schemas import SCHEMAS
from agent_relay.api.problems import CHALLENGE, MEDIA_TYPE, Problem, example
from agent_relay.api.requests.identity import (
    OPERATOR_SCHEMES,
    SECURITY_SCHEMES,
    WAYS_OF_OPERATORS,
    WAYS_OF_TENANTS,
    WAYS_OF_USERS,
)
from agent_relay.api.streaming.event_schemas import SCHEMAS as EVENTS
from agent_relay.shared import VERSION
from agent_relay.shared.settings import Settings

DESCRIPTION = """
Ask a [pydantic-ai](https://ai.pydantic.dev) agent over HTTP, follow its validated answer, keep the conversation.

Every call needs a key of your tenant, in `X-API-Key` or as `Authorization: Bearer`, and `X-User-ID`, your end user, whom
threads and runs belong to: a UUID, or any text of 1 to 128 printable ASCII characters, such as `auth0|5f7c8ec7` or a mail
address, which stands for one UUID of your tenant. A bearer key without `X-User-ID` acts as a user of its own. *Authorize*
sends them for you here. Another user's resource is answered like an unknown one.

Errors are problem documents (RFC 9457): `code` is for programs, `detail` for people. An unknown field or parameter is refused, and
so is text with U+0000 or half a surrogate pair in it. Every response carries `X-Request-ID`, yours if you sent one. Lists are pages: go on with `next_cursor`.

## The stream

`POST /agent/stream` and `GET /runs/{id}/stream` send a run's events, as SSE if you accept `text/event-stream`, else as
NDJSON. Every event is an object `{"id", "event", …}`; ids are opaque and only grow.

| event | fields | meaning |
| --- | --- | --- |
| `message_created` | `message: {id, role}`, `run_id` | the query is stored |
| `message_started` | `message_id`, `attempt`, `reason`, `steps_kept` | a worker begins the answer; above attempt 1 forget the earlier partials: it goes on after this number of finished steps (tool events stay valid), or with 0 begins again |
| `reasoning_delta` | `message_id`, `part`, `token` | the whole text of this part of the model's reasoning so far; it replaces the same part before. On a new attempt, parts above its `reasoning_kept` (0 where it is absent) are void, unless the reason is `answered` |
| `tool_call` | `message_id`, `tool_call_id`, `tool_name`, `args`, `native`, `parent_tool_call_id` | the agent calls a tool; `native` is true for the model provider's own tools, else absent; `parent_tool_call_id` is only there for another agent's calls: the call in which it was asked |
| `tool_result` | the same, with `content` instead of `args` | the result of the tool |
| `progress` | `message_id`, `tool_call_id` (within a call), `name`, `data` | progress that the agent's own code reports; `data` is any JSON |
| `file` | `message_id`, `file_id`, `media_type`, `bytes` | a tool or the model made a file: `GET /files/{file_id}/content` has it |
| `waiting` | `message_id`, `requests` | the run waits for answers to these, see `requests` of a run |
| `answered` | `message_id`, `request_id`, `approve` (of an approval) | one of them was answered |
| `message_enqueued` | `message: {id, role}` | the agent has received a message into the run; a later attempt may send the event again, with the same message id |
| `text_delta` | `message_id`, `token` | the whole validated partial output so far, as JSON text (of a text agent: the text); it replaces the one before |
| `message_complete` | `message_id`, `usage` | the answer is stored; the last `token` equals it |
| `error` | `error: {code, message, retryable}` | the run failed (in SSE the event is named `run_failed`) |
| `cancelled` | `message_id`, `partial` | the run was cancelled |
| `gap` | | some earlier events are gone; the next `text_delta` is complete in itself |
| `done` | `status` | the run has ended and all events were sent |

A stream that reached the run's end closes with `done`; one without it was cut: resume it with `Last-Event-ID` or `?after=`.

With `?deltas=true`, `text_delta` has `drop` and `append` instead of `token` wherever it can: take `drop` characters, which
are ASCII, off the end of the text that you have, then append. The first of a connection and of an attempt is always whole.
`reasoning_delta` does the same; the first of each part, and one that follows another part, is always whole.

A browser's `EventSource` cannot send headers: give it the `url` of a ticket from `POST /runs/{id}/stream-ticket`.

## The stream of a thread

`GET /threads/{id}/stream` tells all runs of a thread, those to come too, whoever asked: one run whole, then the next, in their
order. The events are the same; each also has a `run_id`, and its id holds for this stream alone. `message_created` has
`after_run_id`, the run before it in the conversation: what came after that one was taken out of the thread. After a run's
`done` the stream waits for the next run. It closes with the event `thread_deleted`; one without it was cut: resume it. It
begins with the first run, or with the one of `?from_run=`: for a page that shows the messages, the `run_id` of the last.

## Waiting

A tool may need an approval, an answer or a result from outside. Its run is `waiting` then, with its `requests`;
`POST /runs/{id}/answers` answers them. It holds no worker meanwhile, the clock of `deadline_s` stands still, and it goes on, ahead
of all others, once no request is open; after `wait_deadline_s` without that it fails as `answer_overdue`.

## Later

With `start_at` (a time with its zone) or `start_after_s`, up to 90 days away, a run or a batch is accepted now and starts
then: it is `queued` with a `start_at`, no worker begins before that, and `deadline_s` counts from there. It can be read,
followed and cancelled as any other. In a thread it takes its place when it starts: queries that are asked before do not wait for
it. A time that has passed is now.

A schedule asks a query at each time of a cron expression, in a time zone. Each tick makes one run, which carries
`schedule_id`; ticks that were missed, because the service was away, make one run together. A schedule shows its next ticks,
the status of its last run, and how many failed in a row.

## Asking again

A call whose answer was lost can be sent again without asking twice: give every POST that creates something an
`Idempotency-Key` of your own, a UUID for example, and send the same key and the same bytes again. Later copies are answered
with the result of the first, and `Idempotency-Replayed: true`; a blocking call waits with the first, a stream follows the
same run from its beginning. The same key with another body is refused (422), and while the first call has not been stored
yet, a copy is refused for now (409). The key of a refused call is free. If the result was deleted since, a copy is a 404.
Keys are yours alone, hold for one path, and are kept for 24 hours, unless the service has another setting.

## Webhooks

A run or a batch with a `webhook_url` is posted there once it has ended, or waits, as `{"type": "run.succeeded", "timestamp": …,
"data": {the run}}`, signed as [Standard Webhooks](https://www.standardwebhooks.com) specifies: verify it with any library of
that name and the secret of `GET /webhooks/secret`. Any 2xx is delivery. Everything else is tried again for hours, under the same `webhook-id`, except
redirects, which are not followed and fail, and 410, after which nothing more is sent to that URL. `GET /webhooks/deliveries`
shows the status of each. Only public https addresses are called.

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
    {"name": "schedules", "description": "Queries that are asked again and again, at the times that you say."},
    {"name": "files", "description": "What is attached to queries: images, documents, recordings."},
    {"name": "threads", "description": "Conversations: the next query is answered knowing the ones before."},
    {"name": "users", "description": "Everything that the service keeps for a user."},
    {"name": "usage", "description": "What the runs of your tenant used and cost."},
    {
        "name": "webhooks",
        "description": "Being told when a run or a batch has ended: the secret, and what was delivered.",
    },
    {"name": "agents", "description": "What can be asked."},
    {"name": "user tokens", "description": "The right to act as one user, for browsers and apps."},
    {"name": "operator", "description": "For operators, of all tenants: with a key of `OPERATOR_KEYS`, and no user."},
    {"name": "health", "description": "For operators and their machines; no key is asked for."},
]

_WAYS = {"operator": WAYS_OF_OPERATORS, "user tokens": WAYS_OF_TENANTS}
"""Who may call, by tag; all others are calls of users."""

_RUN, _QUERY, _ANSWER = (f"0198c5a4-7c9e-7000-8000-0000000000{end}" for end in ("a1", "b1", "b2"))

_USAGE: dict[str, Any] = {
    "requests": 1,
    "input_tokens": 50,
    "output_tokens": 12,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "tool_calls": 0,
    "cost_usd": 0.0000147,
}
_EVENTS: list[dict[str, Any]] = [
    {"id": "0-1", "event": "message_created", "message": {"id": _QUERY, "role": "user"}, "run_id": _RUN},
    {"id": "1-1", "event": "message_started", "message_id": _ANSWER, "attempt": 1, "reason": "first", "steps_kept": 0},
    {"id": "1-9", "event": "text_delta", "message_id": _ANSWER, "token": '{"support_advice":"Your bal"}'},
    {"id": "2-0", "event": "message_complete", "message_id": _ANSWER, "usage": _USAGE},
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
                "$ref": "#/components/schemas/StreamEvent",
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
"""OpenAPI's description of a response that is a stream."""

_OF_THREAD: list[dict[str, Any]] = [
    {"id": "1-0-1", "event": "message_created", "run_id": _RUN, "message": _EVENTS[0]["message"], "after_run_id": None},
    *({**event, "id": f"1-{event['id']}", "run_id": _RUN} for event in _EVENTS[1:]),
    {"id": "2-0-0", "event": "thread_deleted"},
]
THREAD_STREAM: dict[str, Any] = {
    "description": "The events of the thread's runs, see *The stream of a thread* above.",
    "content": {
        "application/x-ndjson": {
            "schema": {
                "$ref": "#/components/schemas/ThreadStreamEvent",
                "description": "An event. There is one a line; an empty line is a keep-alive.",
            },
            "examples": {event["event"]: {"value": event} for event in _OF_THREAD},
        },
        "text/event-stream": {
            "schema": STREAM["content"]["text/event-stream"]["schema"],
            "example": _SSE.replace("2-1", "1-2-1"),
        },
    },
}
"""How a route says that it answers with the stream of a thread."""

_RESULT: dict[str, Any] = {
    "cursor": 1,
    "custom_id": "row-1",
    "run_id": _RUN,
    "status": "succeeded",
    "output": {"support_advice": "Your balance is $1123.45."},
    "error": None,
    "usage": _USAGE,
}
_COUNTS = {
    "counts": {"total": 1, "queued": 0, "running": 0, "waiting": 0, "succeeded": 1, "failed": 0, "cancelled": 0},
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
"""OpenAPI's description of a response with the results of a batch."""

EXPORT: dict[str, Any] = {
    "description": "An object a line, each with a `type`. The last is `end`, with how many there were of each type:"
    " without it, the export was cut.",
    "content": {
        "application/x-ndjson": {
            "schema": {
                "type": "object",
                "description": "`user`, then each `thread` with its `message`s, each `run` with its `step`s, each `batch`,"
                " `schedule` and `webhook_delivery`, and each `file` with its bytes in `file_content`: `data` is what the"
                " resource's own call shows.",
            },
            "examples": {"end": {"value": {"type": "end", "counts": {"user": 1, "thread": 1, "message": 2, "run": 1}}}},
        },
    },
}
"""How a route says that it answers with everything of a user."""

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
        """Describe the API, and correct what FastAPI generates."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document["components"]["schemas"]
            document["components"]["schemas"] = deepcopy(EVENTS) | schemas | deepcopy(SCHEMAS)
            document["components"]["securitySchemes"] = {**SECURITY_SCHEMES, **OPERATOR_SCHEMES}
            document["components"]["headers"] = {name: header(*said) for name, said in HEADERS.items()}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    for parameter in operation.get("parameters", ()):
                        _leave_out_null(parameter)
                    if path.startswith("/api/"):
                        ways = _WAYS.get(operation["tags"][0], WAYS_OF_USERS)
                        operation["security"] = [{scheme: [] for scheme in way} for way in ways]
                    operation["responses"] = {
                        status: _as_problem(status, response)
                        for status, response in sorted(operation["responses"].items())
                    }
                    for status, response in operation["responses"].items():
                        names = _headers_of(operation["operationId"], int(status), operation["tags"])
                        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
            _set_limits(document, self.state.settings)
            _share_problems(document)
        return super().openapi()


def _set_limits(document: dict[str, Any], settings: Settings) -> None:
    """Say the limits that are settings."""
    schemas = document["components"]["schemas"]
    for names, most in (
        (("NewQuery", "AttendedQuery", "Requeue", "NewSchedule", "ScheduleChanges"), settings.max_run_deadline_seconds),
        (("NewBatch",), settings.max_batch_deadline_seconds),
    ):
        for name in names:
            _number(schemas[name]["properties"]["deadline_s"])["maximum"] = most
    schemas["NewBatch"]["properties"]["items"]["maxItems"] = settings.most_items_of_a_batch
    for parameter in document["paths"]["/api/v1/batches"]["post"]["parameters"]:
        if parameter["name"] == "deadline_s":
            parameter["schema"]["maximum"] = settings.max_batch_deadline_seconds
        elif parameter["name"] in {"metadata", "options"}:
            del parameter["schema"]
            parameter["content"] = {"application/json": {"schema": {"type": "object"}}}


def _leave_out_null(parameter: dict[str, Any]) -> None:
    """Say the one type of a parameter: one that is not given is left out, `null` would be a word."""
    schema = parameter["schema"]
    kinds = [kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}]
    parameter["schema"] = {**(kinds[0] if kinds else {}), **schema}


def _number(schema: dict[str, Any]) -> dict[str, Any]:
    """Find the number that a schema takes beside null."""
    return next(each for each in schema["anyOf"] if each["type"] == "number")


def header(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Describe a header of a response."""
    return {"description": description, "schema": schema}


_SECONDS = {"type": "integer", "minimum": 1}
_PATH = {"type": "string", "format": "uri-reference"}
_WORDS = {"type": "string"}

HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "X-Request-ID": ("The request's id, yours if you sent one.", {"type": "string", "pattern": "^[!-~]{1,128}$"}),
    "Retry-After": ("Seconds after which to try again.", _SECONDS),
    "RateLimit-Policy": (
        "The limit of requests that is nearest: whose (`user` or `tenant`), and `q` requests in `w` seconds.",
        _WORDS,
    ),
    "RateLimit": ("Of that limit: `r` requests are left, in `t` seconds all of them.", _WORDS),
    "WWW-Authenticate": (
        "What is missing: a key in `X-API-Key`, or as `Authorization: Bearer`.",
        {
            "const": CHALLENGE["WWW-Authenticate"],
        },
    ),
    "Accept-Encoding": ("Where the body was compressed: what is taken.", {"const": "identity"}),
    "Location": ("Where the resource is.", _PATH),
    "Content-Location": ("Where the run is that is followed.", _PATH),
    "Link": ("The stream of that run, as `monitor`: go on there where this one was cut.", _WORDS),
    "ETag": (
        "Changes whenever the run does; of a file, its SHA-256.",
        {"type": "string", "pattern": '^"[0-9a-f]{32}([0-9a-f]{32})?"$'},
    ),
    "Content-Disposition": ("That it is to be saved, and under which name.", _WORDS),
    "Idempotency-Replayed": ("A call with the same `Idempotency-Key` created it before.", {"const": "true"}),
    "Warning": ("No living worker serves the agent; what was asked waits for one.", _WORDS),
    "Preference-Applied": ("How long the call would have waited, where `Prefer` said it.", _WORDS),
}
"""The headers of responses."""

_CREATED = ("Location", "Idempotency-Replayed", "Warning")
_HEADERS_OF_CALLS: dict[str, tuple[str, ...]] = {
    "create_thread": ("Location", "Idempotency-Replayed"),
    "fork_thread": ("Location", "Idempotency-Replayed"),
    "create_schedule": ("Location", "Idempotency-Replayed"),
    "create_file": ("Location", "Idempotency-Replayed"),
    "read_content": ("ETag", "Content-Disposition"),
    "send_message": ("Location", "Idempotency-Replayed"),
    "create_run": _CREATED,
    "create_batch": _CREATED,
    "retry_batch": _CREATED,
    "query": (*_CREATED, "Preference-Applied"),
    "stream": ("Content-Location", "Link", "Idempotency-Replayed", "Warning"),
    "read_run": ("ETag",),
    "cancel": ("Location",),
    "cancel_batch": ("Location",),
}
_HEADERS_OF_STATUSES = {
    401: ("WWW-Authenticate",),
    409: ("Retry-After",),
    415: ("Accept-Encoding",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}


_BEFORE_A_TURN = {400, 401, 403, 404, 408, 431}
"""Statuses of requests that may have been refused before they were counted."""


def _headers_of(call: str, status: int, tags: list[str]) -> list[str]:
    """List the headers that a response may have."""
    names = ["X-Request-ID", *_HEADERS_OF_STATUSES.get(status, ())]
    succeeded = status < HTTPStatus.BAD_REQUEST
    if status not in _BEFORE_A_TURN and not {"operator", "health"} & set(tags):
        names += ["RateLimit-Policy", "RateLimit"]
    return [*names, *_HEADERS_OF_CALLS.get(call, ())] if succeeded else names


def _as_problem(status: str, response: dict[str, Any]) -> dict[str, Any]:
    """Give a problem its own media type: FastAPI knows one for all responses of a route."""
    contents = list(response.get("content", {}).values())
    if [content.get("schema") for content in contents] != [{"$ref": f"#/components/schemas/{Problem.__name__}"}]:
        return response
    return {**response, "content": {MEDIA_TYPE: {**contents[0], "example": example(int(status))}}}


def _share_problems(document: dict[str, Any]) -> None:
    """Say each problem once, and refer to it: what is generated from the document would repeat it for every call."""
    shared: dict[str, dict[str, Any]] = {}
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= HTTPStatus.BAD_REQUEST:
                    counted = int(status) in _BEFORE_A_TURN or "RateLimit" in response["headers"]
                    name = f"Problem{status}" if counted else f"Problem{status}Uncounted"
                    shared[name] = response
                    operation["responses"][status] = {"$ref": f"#/components/responses/{name}"}
    document["components"]["responses"] = dict(sorted(shared.items()))


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
