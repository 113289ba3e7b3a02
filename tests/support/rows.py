"""Rows for tests that need no database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from agent_relay.shared.clock import new_id
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.rows import RunRow


def run_row(**changed: Any) -> RunRow:
    """Make the row of a run at its first attempt, with some of its columns changed."""
    values: dict[str, Any] = {
        "id": new_id(),
        "thread_id": None,
        "agent_type": "echo",
        "status": RunStatus.RUNNING,
        "attempt": 1,
        "output": None,
        "partial_output": None,
        "last_entry": 0,
        "usage": {},
        "error": None,
        "tenant": "acme",
        "pool": "default",
        "lane": "interactive",
        "ring": 1,
        "query": "?",
        "metadata": {},
        "text_output": False,
        "user_message_id": new_id(),
        "message_id": new_id(),
        "retry_of": None,
        "batch_id": None,
        "custom_id": None,
        "schedule_id": None,
        "created_at": datetime.now(UTC),
        "start_at": None,
        "deadline_at": datetime.now(UTC),
        "started_at": None,
        "finished_at": None,
        "served": None,
        "requests": None,
    }
    return RunRow(**values | changed)
