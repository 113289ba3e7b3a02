"""How events are written: one object each, framed for SSE or as a line of NDJSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic_core import to_json

from agent_relay.api.problems import Refused
from agent_relay.api.streaming.threads import ThreadPlace
from agent_relay.shared.event_log import Id

_SEPARATORS = [(character.encode(), b"\\u%04x" % ord(character)) for character in "\x85\u2028\u2029"]


class Framing(Enum):
    """The two framings."""

    NDJSON = "application/x-ndjson"
    SSE = "text/event-stream"

    @property
    def opening(self) -> bytes:
        """The beginning of a stream: SSE clients get the time after which to reconnect."""
        return b"retry: 1000\n\n" if self is Framing.SSE else b""

    @property
    def keepalive(self) -> bytes:
        """The keep-alive."""
        return b":\n\n" if self is Framing.SSE else b"\n"

    def frame(self, event_id: Id | ThreadPlace, name: str, fields: Mapping[str, Any]) -> bytes:
        """Write one event. `EventSource` uses `error` for itself, so there a failed run is called `run_failed`."""
        data = one_line(to_json({"id": str(event_id), "event": name, **fields}))
        if self is Framing.NDJSON:
            return data + b"\n"
        sse_name = "run_failed" if name == "error" else name
        return b"id: %s\nevent: %s\ndata: %s\n\n" % (str(event_id).encode(), sse_name.encode(), data)


def one_line(data: bytes) -> bytes:
    """Escape what JSON allows in a string and many a client's `splitlines` takes for the end of a line."""
    if data.isascii():
        return data
    for separator, escaped in _SEPARATORS:
        if separator in data:
            data = data.replace(separator, escaped)
    return data


def negotiate(accept: str | None) -> Framing:
    """Choose the framing by the `Accept` header: SSE where it is asked for, else NDJSON.

    Where both are named, the higher `q` wins, and SSE where they are equal.

    Raises:
        Refused: 406, the caller takes neither.
    """
    accepted = dict(_media_range(part) for part in (accept or "").split(",") if part.strip()) or {"*/*": 1.0}
    sse, ndjson = accepted.get(Framing.SSE.value, 0.0), max(accepted.get(name, 0.0) for name in _NDJSON)
    if sse and sse >= ndjson:
        return Framing.SSE
    if ndjson or any(accepted.get(name) for name in ("application/*", "*/*", "application/json")):
        return Framing.NDJSON
    if accepted.get("text/*") and Framing.SSE.value not in accepted:
        return Framing.SSE
    raise Refused(406, "A stream is text/event-stream or application/x-ndjson.")


_NDJSON = (Framing.NDJSON.value, "application/ndjson", "application/jsonl")


def _media_range(part: str) -> tuple[str, float]:
    """Read `type/subtype;q=0.5` into the type, lower-case, and its `q`; one that is no number counts as 1."""
    name, *parameters = part.split(";")
    weights = [value.strip() for key, _, value in (p.partition("=") for p in parameters) if key.strip().lower() == "q"]
    weight = weights[0] if weights and _WEIGHT.fullmatch(weights[0]) else "1"
    return name.strip().lower(), float(weight)


_WEIGHT = re.compile(r"[01](\.\d*)?")
