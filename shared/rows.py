"""Rows of the tables as the code uses them, each written once: all results of SQL are read into these.

A status is text here: a newer version may have written one that this version does not know. JSON is as it was stored;
`shared/schemas.py` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pydantic import JsonValue

from agent_relay.shared.queue import QueueEntry


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The data of a run for the end of its event log, and for counting it."""

    id: UUID
    thread_id: UUID | None
    agent_type: str
    status: str
    attempt: int
    output: str | None
    partial_output: str | None
    last_entry: int
    usage: JsonValue
    error: JsonValue


@dataclass(frozen=True, slots=True)
class RunRow(RunEnd):
    """A run as it is shown and followed."""

    tenant: str
    pool: str
    lane: str
    ring: int
    query: str
    metadata: JsonValue
    text_output: bool
    user_message_id: UUID
    message_id: UUID
    retry_of: UUID | None
    batch_id: UUID | None
    custom_id: str | None
    schedule_id: UUID | None
    created_at: datetime
    start_at: datetime | None
    """When it was to start, if that was later than its acceptance."""
    deadline_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    served: bool | None
    """While it is queued: whether a living worker serves its agent."""
    requests: JsonValue
    """All its requests, open or answered."""

    @property
    def queue_entry(self) -> QueueEntry:
        """The entry that calls a worker for it."""
        return QueueEntry(self.id, self.ring, self.pool, self.lane, self.tenant)


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch as it is shown and followed."""

    id: UUID
    tenant: str
    user_id: UUID
    agent_type: str
    metadata: JsonValue
    retry_of: UUID | None
    max_running: int | None
    status: str
    total: int
    succeeded: int
    failed: int
    cancelled: int
    waiting: int
    usage: JsonValue
    created_at: datetime
    start_at: datetime | None
    """When its runs were to start, if that was later than its acceptance."""
    deadline_at: datetime
    finished_at: datetime | None
    running: int
    served: bool | None
    """Until it has ended: whether a living worker serves its agent."""
