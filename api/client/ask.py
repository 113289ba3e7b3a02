"""`ask` and `follow`: one answer, shown while it grows, over as many connections as that takes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from api.client.connection import Connection
from api.client.terminal import Scroll

REASONS = {"worker_lost": "its worker was lost", "worker_stopping": "its worker was stopped"}


@dataclass(slots=True)
class Answer:
    """What is known of a run, event after event."""

    text: str = ""
    status: str | None = None
    """How it ended, once it has."""
    error: str = ""
    """Why it failed."""
    last_id: str | None = None

    def take(self, event: Mapping[str, Any]) -> str | None:
        """Take an event in; returns what is worth mentioning besides the text."""
        self.last_id = event["id"]
        match event:
            case {"event": "text_delta", "token": str(whole)}:
                self.text = whole
            case {"event": "text_delta", "drop": int(drop), "append": str(more)}:
                self.text = self.text[: len(self.text) - drop] + more
            case {"event": "message_started", "attempt": int(attempt), "reason": str(reason)}:
                self.text = ""
                if attempt > 1:
                    return f"The answer begins again: {REASONS.get(reason, reason)}."
            case {"event": "tool_call", "tool_name": name}:
                return f"→ {name} {event.get('args') or ''}"
            case {"event": "tool_result", "tool_name": name}:
                return f"← {name} {event.get('content') or ''}"
            case {"event": "error", "error": {"code": code, "message": message}}:
                self.error = f"{code}: {message}"
            case {"event": "done", "status": status}:
                self.status = status
            case _:
                pass
        return None


def ask(connection: Connection, query: str, target: Mapping[str, str]) -> str:
    """Have a query accepted, once; returns the run's id."""
    return connection.post("/runs", {**target, "query": query}, key=f"ask-{uuid4()}")["id"]


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
                scroll.text = answer.text
    except KeyboardInterrupt:
        scroll.tell(
            f"Interrupted. The run goes on.\n"
            f"To see its answer: python -m api.client follow {run_id}\n"
            f"To cancel it: python -m api.client cancel --run {run_id}"
        )
        raise
    return answer
