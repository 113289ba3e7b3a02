"""What the fuzz of the API is told about it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode
from schemathesis.transport.requests import REQUESTS_TRANSPORT

from agent_relay.api.requests.idempotency import HEADER

NDJSON = "application/x-ndjson"
NOWHERE = "http://127.0.0.1:9/never"
"""The one webhook address that is generated: of a trusted host, where nothing listens. No other is ever contacted."""
AGENTS = ["echo", "form", "bank_support", "unicode"]

ATTACHED = [{"data": "aGVsbG8=", "media_type": "text/plain"}]
"""Attachments that any agent takes; others must exist, or be what their type says."""

_PINNED: dict[str, list[Any]] = {
    "webhook_url": [NOWHERE],
    "agent_type": AGENTS,
    "expires_at": ["2999-01-01T00:00:00Z"],
    "start_at": ["1999-01-01T00:00:00Z"],
    "cron": ["0 8 * * *", "@daily"],
    "timezone": ["UTC", "Europe/Berlin"],
}
"""Values that must exist, be harmless or lie in the future."""


def _pin(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    nothing = [None] if {"type": "null"} in schema.get("anyOf", ()) else []
    return {"enum": [*_PINNED[name], *nothing]}


@schemathesis.hook
def before_load_schema(_context: Any, raw_schema: dict[str, Any]) -> None:
    """Pin what is sent, and describe a stream as the list of its lines."""
    schemas = raw_schema["components"]["schemas"]
    for name in ("NewThread", "NewQuery", "AttendedQuery", "NewBatch", "NewApiKey", "NewSchedule", "ScheduleChanges"):
        properties = schemas[name]["properties"]
        properties.update({key: _pin(key, properties[key]) for key in _PINNED if key in properties})
    takes_options = (
        "NewThread",
        "ThreadChanges",
        "NewQuery",
        "AttendedQuery",
        "NewBatch",
        "NewSchedule",
        "ScheduleChanges",
    )
    for name in takes_options:
        schemas[name]["properties"]["options"] = {"type": "null"}  # None of the agents has any.
    for name in ("NewQuery", "AttendedQuery", "NewItem", "NewMessage"):
        schemas[name]["properties"]["attachments"] = {"enum": [ATTACHED, None]}
    of_files = raw_schema["paths"]["/api/v1/files"]["post"]["requestBody"]
    of_files["content"] = {"text/plain": of_files["content"]["text/plain"]}  # Others must be what they say.
    del raw_schema["paths"]["/api/v1/threads/{thread_id}/stream"]  # It goes on for as long as there is the thread.
    del raw_schema["paths"]["/api/v1/users/me/export"]  # It reads all that was made before, each time.
    del raw_schema["paths"]["/api/v1/users/me/data"]  # It takes away what other cases are about.
    for method, operation in [each for path in raw_schema["paths"].values() for each in path.items()]:
        operation["security"] = operation.get("security", [])[:1]  # The key comes in `X-API-Key`, and not twice.
        for parameter in operation.get("parameters", ()):
            if parameter["name"] in _PINNED and method != "get":  # A list may be asked for what there is not.
                parameter["schema"] = _pin(parameter["name"], parameter["schema"])
        for response in operation["responses"].values():
            if NDJSON in response.get("content", {}):
                line = response["content"][NDJSON]
                line["schema"] = {"type": "array", "items": line["schema"]}


@REQUESTS_TRANSPORT.serializer(NDJSON)
def write_lines(_context: Any, value: Any) -> dict[str, Any]:
    """Write a line of a batch."""
    return {"data": json.dumps(value).encode() + b"\n"}


@schemathesis.deserializer(NDJSON)
def read_lines(_context: Any, response: Any) -> list[Any]:
    """Read the lines of a stream."""
    return [json.loads(line) for line in response.content.splitlines() if line]


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: dict[str, Any]) -> None:
    """Keep to what depends on two parts of a request, or on requests before it, which no schema says.

    A key holds for one body, so each body gets its own. A cursor is one that the service gave out, and a message one
    that the thread has. Of a batch in NDJSON the query string names the agent, and of one in JSON it says nothing. No
    two items have one `custom_id`. What is asked starts at once: a stream would wait for it.
    """
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if case.query and "cursor" in case.query:
        del case.query["cursor"]
    if case.operation.label.endswith(("/stream", "/query", "/runs", "/fork")) and case.operation.method == "post":
        for name in ("replace_from", "through_message_id", "start_at", "start_after_s"):
            case.body.pop(name, None)
    if case.operation.label == "POST /api/v1/batches":
        if case.media_type == NDJSON:
            case.query.setdefault("agent_type", AGENTS[0])
            for name in ("start_at", "start_after_s", "options"):
                case.query.pop(name, None)
        else:
            case.query.clear()
            for name in ("start_at", "start_after_s"):
                case.body.pop(name, None)
            items: dict[str, Any] = {item["custom_id"]: item for item in case.body["items"]}
            case.body["items"] = list(items.values())
    if case.headers and HEADER in case.headers:
        key: str = case.headers[HEADER]
        asked = json.dumps([case.path_parameters, case.query, case.media_type, case.body], default=repr)
        case.headers[HEADER] = hashlib.sha256(f"{key} {asked}".encode()).hexdigest()
