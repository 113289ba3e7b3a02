"""The resources as clients see them, in responses and in webhooks alike."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import from_json

from shared.bad_input import BadInput, refuse
from shared.failures import FailureCode
from shared.tables import BatchStatus, RunStatus

Metadata = dict[str, JsonValue]


class Resource(BaseModel):
    """What clients are shown."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class RunError(Resource):
    """Why a run failed."""

    code: FailureCode
    """One of a closed list."""
    message: str
    """What happened, for people."""
    retryable: bool
    """Whether asking the same again may help."""


class Usage(Resource):
    """What a run used, all attempts summed."""

    requests: int = 0
    """Requests to the model."""
    input_tokens: int = 0
    """Tokens that the model read."""
    output_tokens: int = 0
    """Tokens that the model wrote."""


class Run(Resource):
    """One query from its acceptance to its end."""

    id: UUID
    """The run's id."""
    thread_id: UUID | None
    """The thread that was asked in; null for a run without one."""
    agent_type: str
    """The agent that was asked."""
    query: str
    """What was asked."""
    status: RunStatus | str
    """`queued`, `running`, or the end: `succeeded`, `failed`, `cancelled`. The end never changes. One that
    this version does not know, because a newer one wrote it, is shown as it is."""
    attempt: int
    """How many times a worker has begun to answer."""
    output: JsonValue
    """The validated output, once it succeeded (of a text agent: the text)."""
    partial_output: JsonValue
    """The newest valid partial of a run that has not succeeded, at most a heartbeat old."""
    error: RunError | None
    """Why it failed."""
    usage: Usage
    """What it used, at most a heartbeat old while it runs."""
    message_id: UUID
    """The id of the answer, fixed from the beginning."""
    queue_position: int | None
    """How many runs are before it while it is queued, where that is known."""
    served: bool | None
    """While it is queued: whether a living worker serves its agent; if none does, it waits for one. Else null."""
    metadata: Metadata
    """What you gave with the query."""
    retry_of: UUID | None
    """The run that this one repeats."""
    batch_id: UUID | None
    """The batch that it belongs to."""
    custom_id: str | None
    """Your own id of it within the batch."""
    created_at: datetime
    """When it was accepted."""
    started_at: datetime | None
    """When a worker first began."""
    finished_at: datetime | None
    """When it ended."""


def usage_of(stored: Any) -> dict[str, int]:
    """Read what a run used; what is not as it should be counts as nothing."""
    found = cast("dict[str, object]", stored) if isinstance(stored, dict) else {}
    kinds = Usage.model_fields.keys() & found.keys()
    return {kind: count for kind in kinds if isinstance(count := found[kind], int) and count >= 0}


def metadata_of(stored: Any) -> Metadata:
    """Read metadata; what is no object, as it should be, is an empty one."""
    return cast("Metadata", stored) if isinstance(stored, dict) else {}


def _error_of(stored: Any) -> RunError | None:
    """Read why a run failed; a reason that this version cannot read is an error of the agent's."""
    if stored is None:
        return None
    try:
        return RunError.model_validate(stored)
    except ValidationError as unreadable:
        refuse(BadInput.ROW, "runs.error", unreadable.errors(include_input=False, include_url=False)[:1])
        return RunError(code=FailureCode.AGENT_ERROR, message="This version cannot read why.", retryable=False)


def run_of(row: Any, queue_position: int | None = None) -> Run:
    """Show a run's row."""
    return Run(
        id=row.id,
        thread_id=row.thread_id,
        agent_type=row.agent_type,
        query=row.query,
        status=row.status,
        attempt=row.attempt,
        output=output_of(row.output, text_output=row.text_output),
        partial_output=output_of(row.partial_output, text_output=row.text_output),
        error=_error_of(row.error),
        usage=Usage(**usage_of(row.usage)),
        message_id=row.message_id,
        queue_position=queue_position,
        served=getattr(row, "served", None),
        metadata=metadata_of(row.metadata),
        retry_of=row.retry_of,
        batch_id=row.batch_id,
        custom_id=row.custom_id,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def output_of(text: str | None, *, text_output: bool) -> JsonValue:
    """Show an output, which is kept as JSON text, or of a text agent as the text, as the value itself."""
    """Show an output; one that is no JSON, as it should be, is shown as text."""
    if text is None or text_output:
        return text
    try:
        return from_json(text)
    except ValueError as unreadable:
        refuse(BadInput.ROW, "runs.output", unreadable)
        return text


class Counts(Resource):
    """How many runs of a batch are in which status, at one moment."""

    total: int
    """All of them."""
    queued: int
    """Waiting for a worker."""
    running: int
    """Being answered."""
    succeeded: int
    """Answered."""
    failed: int
    """Ended without an answer; `POST /batches/{id}/retry` asks them again."""
    cancelled: int
    """Ended because somebody cancelled them or the batch."""


class Batch(Resource):
    """Many stateless runs as one."""

    id: UUID
    """The batch's id."""
    agent_type: str
    """The agent that is asked."""
    status: BatchStatus | str
    """`in_progress` until the last run has ended, then `completed`; or `cancelling`, then `cancelled`."""
    counts: Counts
    """How far it is, exactly."""
    served: bool | None
    """Until it has ended: whether a living worker serves its agent; if none does, it waits for one. Then null."""
    metadata: Metadata
    """What you gave with it."""
    retry_of: UUID | None
    """The batch whose failed items it repeats."""
    created_at: datetime
    """When it was accepted."""
    finished_at: datetime | None
    """When its last run ended."""


def counts_of(row: Any) -> Counts:
    """Show a batch's row in numbers."""
    ended = row.succeeded + row.failed + row.cancelled
    return Counts(
        total=row.total,
        queued=row.total - row.running - ended,
        running=row.running,
        succeeded=row.succeeded,
        failed=row.failed,
        cancelled=row.cancelled,
    )


def batch_of(row: Any) -> Batch:
    """Show a batch's row."""
    return Batch(
        id=row.id,
        agent_type=row.agent_type,
        status=row.status,
        counts=counts_of(row),
        served=getattr(row, "served", None),
        metadata=metadata_of(row.metadata),
        retry_of=row.retry_of,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )


class RunEvent(Resource):
    """What a webhook posts once a run has ended."""

    type: str
    """What happened: `run.succeeded`, `run.failed` or `run.cancelled`."""
    timestamp: datetime
    """When it happened."""
    data: Run
    """What it happened to, as `GET` shows it."""


class BatchEvent(Resource):
    """What a webhook posts once a batch has ended."""

    type: str
    """What happened: `batch.completed` or `batch.cancelled`."""
    timestamp: datetime
    """When it happened."""
    data: Batch
    """What it happened to, as `GET` shows it."""
