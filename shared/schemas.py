"""The resources as clients see them, in responses and in webhooks alike."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import from_json

from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.database.tables import BatchStatus, RequestKind, RunStatus
from agent_relay.shared.failure_codes import FailureCode
from agent_relay.shared.rows import BatchRow, RunRow

Metadata = dict[str, JsonValue]


class Resource(BaseModel):
    """A response for clients."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class RunError(Resource):
    """Why a run failed."""

    code: FailureCode
    """One of a closed list."""
    message: str
    """A description for people."""
    retryable: bool
    """Whether asking the same again may help."""


class Usage(Resource):
    """The usage of a run, all attempts summed."""

    requests: int = 0
    """Requests to the model."""
    input_tokens: int = 0
    """Tokens that the model read."""
    output_tokens: int = 0
    """Tokens that the model wrote."""
    cache_read_tokens: int = 0
    """Of the tokens that the model read, those that its provider took out of a cache."""
    cache_write_tokens: int = 0
    """Of the tokens that the model read, those that its provider put into a cache."""
    tool_calls: int = 0
    """Calls of tools that returned."""
    cost_usd: float | None = None
    """The cost of the requests whose price is known, in US dollars; null if there are none."""


_NO_USAGE = Usage().model_dump()


def _require_all(schema: JsonDict) -> None:
    """Say that every field is shown, also those with a default."""
    schema["required"] = list(cast("JsonDict", schema.get("properties", {})))


class OpenRequest(Resource):
    """Something that a run waits for: a person's approval or answer, or a result from outside."""

    request_id: str
    """The tool call's id; `POST /runs/{id}/answers` takes it."""
    kind: RequestKind | str
    """`approval`: whether to make the call. `question`: a question to answer. `external`: a result to send."""
    tool_name: str
    """The tool that is called."""
    args: JsonValue
    """The arguments of the call."""
    prompt: str | None = None
    """The tool's prompt for people, if any."""
    value_schema: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    """JSON Schema: of an approval, of `args`; else of `result`. Null where any value will do."""
    created_at: datetime
    """Since when it waits."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True, json_schema_extra=_require_all)


class RunRequest(OpenRequest):
    """Something that a run waits for, or has waited for, and what was answered."""

    answer: dict[str, JsonValue] | None = None
    """The answer; null while the request is open."""
    answered_by: str | None = None
    """The user who answered."""
    answered_at: datetime | None = None
    """When."""
    attempt: SkipJsonSchema[int] = Field(default=0, exclude=True)
    answer_entry: SkipJsonSchema[int | None] = Field(default=None, exclude=True)


class Run(Resource):
    """One query from its acceptance to its end."""

    id: UUID
    """The run's id."""
    thread_id: UUID | None
    """The thread that was asked in; null for a run without one."""
    agent_type: str
    """The agent that was asked."""
    query: str
    """The query."""
    status: RunStatus | str
    """`queued`, `running`, `waiting` (for answers, see `requests`), or the end: `succeeded`, `failed`, `cancelled`. The
    end never changes. One that this version does not know, because a newer one wrote it, is shown as it is."""
    attempt: int
    """How many times a worker has begun to answer."""
    output: JsonValue
    """The validated output, once it succeeded (of a text agent: the text)."""
    partial_output: JsonValue
    """The newest valid partial of a run that has not succeeded, at most a heartbeat old."""
    error: RunError | None
    """Why it failed."""
    usage: Usage
    """Its usage, at most a heartbeat old while it runs."""
    requests: list[RunRequest]
    """All its requests, in the order in which it made them; those without an `answer` are open."""
    message_id: UUID
    """The id of the answer, fixed from the beginning."""
    queue_position: int | None
    """How many runs are before it while it is queued, where that is known."""
    served: bool | None
    """While it is queued: whether a living worker serves its agent; if none does, it waits for one. Else null."""
    metadata: Metadata
    """The metadata of the query."""
    retry_of: UUID | None
    """The run that this one repeats."""
    batch_id: UUID | None
    """The batch that it belongs to."""
    custom_id: str | None
    """Your own id of it within the batch."""
    schedule_id: UUID | None
    """The schedule that made it."""
    created_at: datetime
    """When it was accepted."""
    start_at: datetime | None
    """When it was to start, if that was later than its acceptance: until then no worker begins. Of a schedule's: its
    tick."""
    started_at: datetime | None
    """When a worker first began."""
    finished_at: datetime | None
    """When it ended."""


def usage_of(stored: object) -> dict[str, float]:
    """Read the usage of a run; malformed values count as nothing."""
    found = cast("dict[str, object]", stored) if isinstance(stored, dict) else {}
    kinds = Usage.model_fields.keys() & found.keys()
    return {
        kind: count
        for kind in kinds
        if isinstance(count := found[kind], int | float if kind == "cost_usd" else int) and 0 <= count < math.inf
    }


def whole_usage(stored: object) -> dict[str, float | None]:
    """Read the usage of a run, with all its fields."""
    return _NO_USAGE | usage_of(stored)


def metadata_of(stored: object) -> Metadata:
    """Read metadata; anything but an object is an empty one."""
    return cast("Metadata", stored) if isinstance(stored, dict) else {}


def error_of(stored: object) -> RunError:
    """Read why a run failed; a reason that this version cannot read is an error of the agent's."""
    try:
        return RunError.model_validate(stored)
    except ValidationError as unreadable:
        refuse(BadInput.ROW, "runs.error", unreadable.errors(include_input=False, include_url=False)[:1])
        return RunError(code=FailureCode.AGENT_ERROR, message="This version cannot read why.", retryable=False)


def requests_in(run: str) -> str:
    """Return the SQL for the requests of a run, as `requests_of` reads them; null if it never waited."""
    return f"""CASE WHEN {run}.wait_attempt IS NOT NULL THEN (
        SELECT json_agg(json_build_object(
            'request_id', request_id, 'kind', kind, 'tool_name', tool_name, 'args', args, 'prompt', prompt,
            'schema', schema, 'created_at', created_at, 'answer', answer, 'answered_by', answered_by,
            'answered_at', answered_at, 'attempt', run_requests.attempt, 'answer_entry', answer_entry
        ) ORDER BY run_requests.attempt, place)
        FROM run_requests WHERE run_id = {run}.id
    ) END"""  # noqa: S608  (names of tables)


def requests_of(stored: object) -> list[RunRequest]:
    """Read the requests of a run, whose JSON values are text; those that this version cannot read are left out."""
    requests: list[RunRequest] = []
    for each in cast("list[dict[str, Any]]", stored or []):
        try:
            values = {name: None if each[name] is None else from_json(each[name]) for name in _JSON_OF_REQUESTS}
            requests.append(RunRequest.model_validate({**each, **values}))
        except ValueError as unreadable:
            refuse(BadInput.ROW, "run_requests", unreadable)
    return requests


_JSON_OF_REQUESTS = ("args", "schema", "answer")


def run_of(row: RunRow, queue_position: int | None = None) -> Run:
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
        error=None if row.error is None else error_of(row.error),
        usage=Usage.model_validate(usage_of(row.usage)),
        requests=requests_of(row.requests),
        message_id=row.message_id,
        queue_position=queue_position,
        served=row.served,
        metadata=metadata_of(row.metadata),
        retry_of=row.retry_of,
        batch_id=row.batch_id,
        custom_id=row.custom_id,
        schedule_id=row.schedule_id,
        created_at=row.created_at,
        start_at=row.start_at,
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
    waiting: int
    """Waiting for an answer to their requests, see `POST /runs/{id}/answers`."""
    succeeded: int
    """Answered."""
    failed: int
    """Ended without an answer; `POST /batches/{id}/retry` asks them again."""
    cancelled: int
    """Ended because they or the batch were cancelled."""


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
    usage: Usage
    """What its runs that have ended used, all their attempts together, exactly."""
    served: bool | None
    """Until it has ended: whether a living worker serves its agent; if none does, it waits for one. Then null."""
    metadata: Metadata
    """The metadata of the batch."""
    retry_of: UUID | None
    """The batch whose failed items it repeats."""
    created_at: datetime
    """When it was accepted."""
    start_at: datetime | None
    """When its runs were to start, if that was later than its acceptance."""
    finished_at: datetime | None
    """When its last run ended."""


def counts_of(row: BatchRow) -> Counts:
    """Show a batch's row in numbers."""
    ended = row.succeeded + row.failed + row.cancelled
    return Counts(
        total=row.total,
        queued=row.total - row.running - row.waiting - ended,
        running=row.running,
        waiting=row.waiting,
        succeeded=row.succeeded,
        failed=row.failed,
        cancelled=row.cancelled,
    )


def batch_of(row: BatchRow) -> Batch:
    """Show a batch's row."""
    return Batch(
        id=row.id,
        agent_type=row.agent_type,
        status=row.status,
        counts=counts_of(row),
        usage=Usage.model_validate(whole_usage(row.usage)),
        served=row.served,
        metadata=metadata_of(row.metadata),
        retry_of=row.retry_of,
        created_at=row.created_at,
        start_at=row.start_at,
        finished_at=row.finished_at,
    )


class RunEvent(Resource):
    """The body of a webhook when a run has ended, or waits."""

    type: str
    """The type of the event: `run.succeeded`, `run.failed`, `run.cancelled` or `run.waiting`."""
    timestamp: datetime
    """When it happened."""
    data: Run
    """The run, as `GET` shows it."""


class BatchEvent(Resource):
    """The body of a webhook when a batch has ended, or all its unfinished runs wait."""

    type: str
    """The type of the event: `batch.completed`, `batch.cancelled` or `batch.waiting`."""
    timestamp: datetime
    """When it happened."""
    data: Batch
    """The batch, as `GET` shows it."""
