"""Answers to what a run waits for: asked of a person in the terminal, or given as options."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agent_relay.client.errors import Wrong
from agent_relay.client.terminal import complain

Request = Mapping[str, Any]


def open_requests(run: Mapping[str, Any]) -> list[Request]:
    """List what a run waits for now."""
    waits = run["status"] == "waiting"
    return [request for request in run.get("requests", ()) if waits and request["answer"] is None]


def said(request: Request) -> str:
    """Say in a line what a request asks."""
    call = f"{request['tool_name']} {json.dumps(request['args'], ensure_ascii=False)}"
    prompt = f": {request['prompt']}" if request.get("prompt") else ""
    return f"{request['kind']} {request['request_id']}: {call}{prompt}"


def can_ask() -> bool:
    """Whether a person sits at the terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()  # pyright: ignore[reportUnnecessaryComparison]  (they are, where they were closed)


def ask_for(requests: Iterable[Request], read: Callable[[], str] = input) -> list[dict[str, Any]]:
    """Ask a person each request.

    Raises:
        EOFError: the person ends the input.
    """
    return [{"request_id": request["request_id"], **_asked(request, read)} for request in requests]


def _asked(request: Request, read: Callable[[], str]) -> dict[str, Any]:
    complain(said(request))
    if request["kind"] == "approval":
        complain("Approve? [y/n] ", end="")
        while (answer := read().strip().lower()) not in {"y", "yes", "n", "no"}:
            complain("y or n: ", end="")
        if answer.startswith("y"):
            return {"approve": True}
        complain("What is the agent told? (nothing: just that it was denied) ", end="")
        message = read().strip()
        return {"approve": False, "message": message} if message else {"approve": False}
    schema: Mapping[str, Any] = request.get("schema") or {}
    is_text = schema.get("type") == "string"
    complain("The answer: " if is_text else "The result, as JSON or text: ", end="")
    answer = read()
    return {"result": answer if is_text else _value(answer)}


def _value(text: str) -> Any:
    """Read JSON; anything else is a text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def given(
    approve: Sequence[str],
    deny: Sequence[str],
    message: str | None,
    results: Sequence[Sequence[str]],
    errors: Sequence[Sequence[str]],
) -> list[dict[str, Any]]:
    """Make answers of options.

    Raises:
        Wrong: a message to the agent goes with a denial only.
    """
    if message is not None and not deny:
        raise Wrong("--message needs --deny: it tells the agent why.")
    told = {} if message is None else {"message": message}
    return [
        *({"request_id": request_id, "approve": True} for request_id in approve),
        *({"request_id": request_id, "approve": False, **told} for request_id in deny),
        *({"request_id": request_id, "result": _value(text)} for request_id, text in results),
        *({"request_id": request_id, "error": text} for request_id, text in errors),
    ]
