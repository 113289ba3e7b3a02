"""`ask` and `follow`: one answer, shown while it grows, over as many connections as that takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from agent_relay.client.answers import ask_for, can_ask, open_requests, said
from agent_relay.client.connection import Connection
from agent_relay.client.terminal import Scroll

REASONS = {"worker_lost": "its worker was lost", "worker_stopping": "its worker was stopped"}


@dataclass(slots=True)
class Answer:
    """What is known of a run, event after event."""

    text: str = ""
    thought: str = ""
    """The newest part of what the model thought."""
    thinks: bool = False
    """Whether nothing has come after that part."""
    status: str | None = None
    """How it ended, once it has."""
    error: str = ""
    """Why it failed."""
    last_id: str | None = None
    waits: bool = False
    """Whether it waits for answers, by the events so far."""
    _part: int | None = None
    """The number of `thought`; None where this attempt has told none."""

    def take(self, event: Mapping[str, Any]) -> str | None:
        """Take an event in; returns what is worth mentioning besides the text."""
        self.last_id = event["id"]
        self.waits = event["event"] == "waiting"
        self.thinks = event["event"] == "reasoning_delta"
        match event:
            case {"event": "reasoning_delta", "part": int(part)}:
                is_new, self._part = part != self._part, part
                self.thought = _grown("" if is_new else self.thought, event)
                return "… thinking" if is_new else None
            case {"event": "text_delta"}:
                self.text = _grown(self.text, event)
            case {"event": "message_started", "attempt": int(attempt), "reason": str(reason)}:
                self.text, self._part = "", None
                if attempt > 1 and reason != "answered" and event.get("steps_kept"):
                    return (
                        f"The answer goes on after {event['steps_kept']} finished steps: {REASONS.get(reason, reason)}."
                    )
                if attempt > 1 and reason != "answered":
                    return f"The answer begins again: {REASONS.get(reason, reason)}."
            case {"event": "error", "error": {"code": code, "message": message}}:
                self.error = f"{code}: {message}"
            case {"event": "done", "status": status}:
                self.status = status
            case _:
                return _mentioned(event)
        return None


def _mentioned(event: Mapping[str, Any]) -> str | None:
    match event:
        case {"event": "tool_call", "tool_name": name}:
            return f"→ {name} {event.get('args') or ''}"
        case {"event": "tool_result", "tool_name": name}:
            return f"← {name} {event.get('content') or ''}"
        case {"event": "progress", "name": name, "data": data}:
            return f"· {name} {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}"
        case _:
            return None


def _grown(text: str, event: Mapping[str, Any]) -> str:
    match event:
        case {"token": str(whole)}:
            return whole
        case {"drop": int(drop), "append": str(more)}:
            return text[: len(text) - drop] + more
        case _:
            return text


def ask(connection: Connection, query: str, target: Mapping[str, str]) -> str:
    """Have a query accepted, once; returns the run's id."""
    return connection.post("/runs", {**target, "query": query}, key=f"ask-{uuid4()}")["id"]


def _answer(connection: Connection, scroll: Scroll, run_id: str) -> None:
    """Answer what a run waits for, if a person can be asked; else say what it is, and go on waiting."""
    requests = open_requests(connection.get(f"/runs/{run_id}"))
    if not requests:
        return
    if not can_ask():
        for request in requests:
            scroll.tell(f"The run waits for this {said(request)}")
        scroll.tell(f"To answer: agent-relay answer {run_id}")
        return
    with scroll.paused():
        answers = ask_for(requests)
    connection.post(f"/runs/{run_id}/answers", {"answers": answers})


def follow(connection: Connection, scroll: Scroll, run_id: str) -> Answer:
    """Show a run until it has ended."""
    answer = Answer()
    path = f"/runs/{run_id}/stream"
    try:
        with closing(connection.follow(path, lambda: {"deltas": "true", "after": answer.last_id})) as lines:
            while answer.status is None:
                mention = answer.take(next(lines)[1])
                if mention is not None:
                    scroll.mention(mention)
                scroll.text, scroll.thought = answer.text, answer.thought if answer.thinks else None
                if answer.waits:
                    _answer(connection, scroll, run_id)
    except (KeyboardInterrupt, EOFError):
        scroll.tell(
            f"Interrupted. The run goes on.\n"
            f"To see its answer: agent-relay follow {run_id}\n"
            f"To cancel it: agent-relay cancel --run {run_id}"
        )
        raise KeyboardInterrupt from None
    return answer
