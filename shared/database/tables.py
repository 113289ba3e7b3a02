r"""The tables. `shared/runs` describes the life of a row; `shared/migrations`, the changes of its columns.

JSON that a model wrote is kept as text, never as `jsonb`: it may hold `\u0000`, and it goes out as it came in.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, ForeignKey, Index, LargeBinary, Text, UniqueConstraint, Uuid, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class RunStatus(StrEnum):
    """Where a run is in its life. Terminal states never change."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED = frozenset({RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING})
TERMINAL = frozenset(RunStatus) - UNFINISHED
IS_UNFINISHED = "status IN ('queued', 'running', 'waiting')"
"""The condition of the indexes over unfinished runs, and of the statements that use them."""


class BatchStatus(StrEnum):
    """Where a batch is in its life. It ends with the last of its runs, and then never changes."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class AttemptReason(StrEnum):
    """Why the next attempt begins: the first, or what became of the one before."""

    FIRST = "first"
    WORKER_LOST = "worker_lost"
    WORKER_STOPPING = "worker_stopping"
    ANSWERED = "answered"
    """Everything that the run waited for was answered: it goes on, and nothing before is void."""


class RequestKind(StrEnum):
    """The kind of answer that a tool call waits for."""

    APPROVAL = "approval"
    QUESTION = "question"
    EXTERNAL = "external"


class Base(DeclarativeBase):
    """The metadata that all tables share."""

    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's name and shape)
        dict[str, Any]: JSONB,
        datetime: DateTime(timezone=True),
        UUID: Uuid,
        bytes: LargeBinary,
        str: Text,
    }


class Worker(Base):
    """One registration of a worker process; it holds runs for as long as it renews its lease."""

    __tablename__ = "workers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    pool: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    version: Mapped[str]
    slots: Mapped[int]
    draining: Mapped[bool] = mapped_column(server_default=text("false"))
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    lease_until: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    """Set when it stopped or was declared dead; from then on it may claim nothing."""
    first_id: Mapped[UUID | None]
    """Of a process that was declared dead and lives: the id of its first registration, which its parent knows."""
    agents: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """The agents that it serves; null of a worker older than this column, which serves all of its pool."""

    __table_args__ = (Index("workers_living", "lease_until", postgresql_where=text("ended_at IS NULL")),)


class Agent(Base):
    """An agent as the workers registered it; the API knows agents from here only."""

    __tablename__ = "agents"

    agent_type: Mapped[str] = mapped_column(primary_key=True)
    pool: Mapped[str]
    description: Mapped[str]
    output_schema: Mapped[dict[str, Any]]
    text_output: Mapped[bool]
    """Whether the output is text instead of JSON."""
    examples: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    """Queries to begin with."""
    tool_events: Mapped[str | None]
    """The part of its tool calls that callers are shown, see `ToolEvents`; null of a worker older than this column."""
    reasoning: Mapped[bool | None]
    """Whether callers are shown what its model thinks; null of a worker older than this column."""
    options_schema: Mapped[dict[str, Any] | None]
    """JSON Schema of its options; null if there are none."""
    attachments: Mapped[list[str] | None] = mapped_column(JSONB)
    """The media types that it takes, as `image/*`; null of a worker older than this column."""
    waiting: Mapped[bool | None]
    """Whether its runs may wait for answers; null where that is not known."""
    registered_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Thread(Base):
    """A conversation of one user with one agent."""

    __tablename__ = "threads"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    user_id: Mapped[UUID]
    agent_type: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    """As the caller gave it: `jsonb` would write out `1e308` in 309 digits."""
    title: Mapped[str | None]
    options: Mapped[dict[str, Any] | None]
    """Those of its runs, unless a run has its own."""
    last_seq: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """The `seq` of the run accepted last; raised under the row's lock."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        Index("threads_of_a_user", "tenant", "user_id", "created_at", "id"),
        Index("threads_to_erase", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )


class Run(Base):
    """One query from its acceptance to its end."""

    __tablename__ = "runs"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    user_id: Mapped[UUID]
    thread_id: Mapped[UUID | None] = mapped_column(ForeignKey("threads.id", ondelete="CASCADE"))
    seq: Mapped[int | None] = mapped_column(BigInteger)
    """The place in the thread's order."""
    agent_type: Mapped[str]
    pool: Mapped[str]
    lane: Mapped[str] = mapped_column(server_default=text("'interactive'"))
    query: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    """As the caller gave it: `jsonb` would write out `1e308` in 309 digits."""
    options: Mapped[dict[str, Any] | None]
    """The chosen options; those of its thread or batch hold beside."""
    history: Mapped[list[dict[str, str]] | None] = mapped_column(JSON)
    """Messages before the query, if the caller holds the conversation; see `Said`."""
    attachments: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    """Attachments of its query, see `shared/attachments.py`."""
    user_message_id: Mapped[UUID]
    message_id: Mapped[UUID]
    """The answer's id, the same for all attempts."""
    retry_of: Mapped[UUID | None]
    requeued_as: Mapped[UUID | None]
    """The run that an operator has made of this one, which failed."""
    batch_id: Mapped[UUID | None]
    custom_id: Mapped[str | None]

    status: Mapped[str] = mapped_column(server_default=text("'queued'"))
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    """Raised by every claim: the fence. It limits nothing."""
    crashes: Mapped[int] = mapped_column(server_default=text("0"))
    """Workers that died under the run: the budget."""
    begun: Mapped[str] = mapped_column(server_default=text("'first'"))
    """Why the next attempt begins, see `AttemptReason`."""
    ring: Mapped[int] = mapped_column(server_default=text("1"))
    """Raised by every statement that enqueues the run again."""
    rung_at: Mapped[datetime] = mapped_column(server_default=func.now())
    worker_id: Mapped[UUID | None]
    cancel_requested_at: Mapped[datetime | None]
    webhook_url: Mapped[str | None]
    """Where to post the run once it has ended."""
    rolled_back: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether its messages were erased, by a later run of the thread: its end stores none."""

    partial_output: Mapped[str | None]
    """The newest valid partial, as JSON text (of a text agent: the text); at most a heartbeat old."""
    output: Mapped[str | None]
    """The validated output, in the same form."""
    text_output: Mapped[bool]
    """Whether the output is the text of a text agent instead of JSON."""
    last_entry: Mapped[int] = mapped_column(server_default=text("0"))
    """The `n` of the last entry that the last attempt wrote into the event log."""
    error: Mapped[dict[str, Any] | None]
    usage: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    model: Mapped[str | None]
    """The name of the model that gave the answer, once it has ended."""

    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Not to be claimed before."""
    deadline_at: Mapped[datetime]
    start_at: Mapped[datetime | None]
    """When it was to start, if that was later than its acceptance; of a schedule's, its tick."""
    starts_later: Mapped[bool] = mapped_column(server_default=text("false"))
    """Until the sweeper starts it: it is in no lane, and if it is of a thread, it has no place there."""
    schedule_id: Mapped[UUID | None]
    """The schedule that made it."""
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    end_told: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether the end stands in the event log."""

    wait_seconds: Mapped[float | None]
    """How long it may wait for answers; null for the time of its batch or of the settings."""
    waiting_since: Mapped[datetime | None]
    wait_until: Mapped[datetime | None]
    """When the wait ends it, if it waits; the clock of `deadline_at` stands still until then."""
    waited_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    """Of all its waits that were answered; `deadline_at` is later by as much."""
    wait_attempt: Mapped[int | None]
    """The attempt that came to wait last, if any did; from its transcript and requests the next one goes on."""
    wait_entry: Mapped[int | None]
    """The `n` of its event."""

    last_message: Mapped[int] = mapped_column(server_default=text("0"))
    """The `place` of the last message that was sent into it; raised under the row's lock."""
    heard: Mapped[int] = mapped_column(server_default=text("0"))
    """The `place` of the last one that the transcript holds. Those after it are queued as runs by a trigger, at the end
    of a run in a thread."""

    __table_args__ = (
        UniqueConstraint("thread_id", "seq", name="runs_in_a_thread"),
        Index("one_running_run_a_thread", "thread_id", unique=True, postgresql_where=text("status = 'running'")),
        Index("runs_of_a_user", "tenant", "user_id", "created_at", "id"),
        Index("runs_of_a_user_in_a_status", "tenant", "user_id", "status", "created_at", "id"),
        Index(
            "runs_queued",
            "pool",
            "lane",
            "created_at",
            "id",
            postgresql_where=text("status = 'queued' AND NOT starts_later"),
        ),
        Index(
            "one_run_a_tick",
            "schedule_id",
            "start_at",
            unique=True,
            postgresql_where=text("schedule_id IS NOT NULL"),
        ),
        Index("runs_to_start", "start_at", postgresql_where=text("status = 'queued' AND starts_later")),
        Index(
            "runs_unfinished_of_a_user",
            "status",
            "lane",
            "tenant",
            "user_id",
            postgresql_where=text(IS_UNFINISHED),
        ),
        Index(
            "runs_passed_over",
            "tenant",
            "created_at",
            postgresql_where=text("status = 'queued' AND lane = 'interactive' AND due_at = deadline_at"),
        ),
        Index("runs_held", "worker_id", postgresql_where=text("status = 'running'")),
        Index("runs_expiring", "deadline_at", postgresql_where=text("status IN ('queued', 'running')")),
        Index("runs_waiting", "wait_until", postgresql_where=text("status = 'waiting'")),
        Index(
            "runs_unfinished_in_a_thread",
            "thread_id",
            "seq",
            postgresql_where=text(IS_UNFINISHED),
        ),
        Index("runs_untold", "finished_at", postgresql_where=text("finished_at IS NOT NULL AND NOT end_told")),
        Index(
            "runs_dead_by_code",
            text("(error ->> 'code')"),
            "finished_at",
            "id",
            postgresql_where=text("status = 'failed' AND requeued_as IS NULL"),
        ),
        Index("runs_ended", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index("runs_to_erase", "finished_at", postgresql_where=text("thread_id IS NULL AND finished_at IS NOT NULL")),
        Index("runs_of_a_batch", "batch_id", "created_at", "id", postgresql_where=text("batch_id IS NOT NULL")),
        Index(
            "runs_unfinished_in_a_batch",
            "batch_id",
            "status",
            "due_at",
            "id",
            postgresql_where=text(f"batch_id IS NOT NULL AND {IS_UNFINISHED}"),
        ),
    )


class Batch(Base):
    """Many stateless runs that were accepted together. A run that ends is counted here by a trigger of its table."""

    __tablename__ = "batches"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    user_id: Mapped[UUID]
    agent_type: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    """As the caller gave it: `jsonb` would write out `1e308` in 309 digits."""
    retry_of: Mapped[UUID | None]
    max_running: Mapped[int | None]
    """How many of its runs may run at once; the others are not due before their deadline, see `release`."""
    run_seconds: Mapped[float]
    """How long an attempt at one of its runs may take."""
    options: Mapped[dict[str, Any] | None]
    """Those of its runs."""
    webhook_url: Mapped[str | None]
    """Where to post the batch once it has ended."""
    wait_seconds: Mapped[float | None]
    """How long each of its runs may wait for answers; null for the time of the settings."""
    status: Mapped[str] = mapped_column(server_default=text("'in_progress'"))
    total: Mapped[int]
    succeeded: Mapped[int] = mapped_column(server_default=text("0"))
    failed: Mapped[int] = mapped_column(server_default=text("0"))
    cancelled: Mapped[int] = mapped_column(server_default=text("0"))
    waiting: Mapped[int] = mapped_column(server_default=text("0"))
    """Runs that wait for answers now."""
    usage: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """What its runs that have ended used, summed by the trigger that counts them."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    start_at: Mapped[datetime | None]
    """When its runs were to start, if that was later than its acceptance."""
    deadline_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    """When the last of its runs ended."""
    deleted_at: Mapped[datetime | None]
    """Since when it cannot be read; its rows are erased later."""

    __table_args__ = (
        Index("batches_of_a_user", "tenant", "user_id", "created_at", "id"),
        Index("batches_unfinished", "created_at", postgresql_where=text("finished_at IS NULL")),
        Index("batches_to_erase", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    )


class BatchResult(Base):
    """The completion order of a batch's runs; written in the transaction of each end, under the batch's row lock."""

    __tablename__ = "batch_results"

    batch_id: Mapped[UUID] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    """Counted from 1, without holes: the cursor of the results."""
    run_id: Mapped[UUID]


class Message(Base):
    """A message that a reader of the thread sees."""

    __tablename__ = "messages"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    thread_id: Mapped[UUID] = mapped_column(ForeignKey("threads.id", ondelete="CASCADE"))
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(BigInteger)
    """The place in the conversation: twice the run's `seq`, and one more for the answer."""
    place: Mapped[int] = mapped_column(server_default=text("0"))
    """1, 2, 3, … of messages into the run, which have the position of its query."""
    role: Mapped[str]
    content: Mapped[str]
    attachments: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    details: Mapped[dict[str, Any]] = mapped_column("metadata")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("thread_id", "position", "place", name="messages_in_a_thread"),
        Index("messages_of_a_run", "run_id"),
    )


class Transcript(Base):
    """The model's own messages of one run, lossless, from which the thread's next run continues."""

    __tablename__ = "transcripts"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    messages: Mapped[str]
    """A JSON array in the format of pydantic-ai's `ModelMessagesTypeAdapter`."""
    attempt: Mapped[int | None]
    """The attempt that wrote it; null of a worker older than this column."""


class PastUsage(Base):
    """Usage of runs that have been erased, by the day they ended (UTC); a trigger keeps it."""

    __tablename__ = "past_usage"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    agent_type: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    """Empty where none answered."""
    day: Mapped[date] = mapped_column(primary_key=True)
    runs: Mapped[Decimal]
    requests: Mapped[Decimal]
    input_tokens: Mapped[Decimal]
    output_tokens: Mapped[Decimal]
    cache_read_tokens: Mapped[Decimal]
    cache_write_tokens: Mapped[Decimal]
    tool_calls: Mapped[Decimal]
    cost_usd: Mapped[Decimal | None]


class RunStep(Base):
    """The part that a finished step of a run adds to the model's messages; the next attempt goes on from there."""

    __tablename__ = "run_steps"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    """The attempt that finished it."""
    place: Mapped[int] = mapped_column(primary_key=True)
    """1, 2, 3, … of each attempt."""
    agent: Mapped[str]
    """Says which version of the agent finished it; another one does not go on from there."""
    messages: Mapped[str]
    """A JSON array in the format of pydantic-ai's `ModelMessagesTypeAdapter`; the results of one response may be spread
    over several requests."""
    usage: Mapped[dict[str, Any]]
    """The usage of the run by then, of all its attempts."""
    heard: Mapped[int] = mapped_column(server_default=text("0"))
    """The `place` of the last message into the run that the model had received by then."""
    finished_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RunMessage(Base):
    """A message that a user has sent into a run that had not ended; see `shared/runs/into_run.py`."""

    __tablename__ = "run_messages"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    """The id of the message, in the thread, too."""
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    place: Mapped[int]
    """1, 2, 3, … of each run."""
    query: Mapped[str]
    attachments: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    """As the caller gave it, for the run that it may become, as all that follows."""
    webhook_url: Mapped[str | None]
    wait_seconds: Mapped[float | None]
    deadline_seconds: Mapped[float]
    seq: Mapped[int | None] = mapped_column(BigInteger)
    """The place in the thread's order that is kept for that run; null without a thread."""
    next_run_id: Mapped[UUID]
    """The id that it gets."""
    next_message_id: Mapped[UUID]
    """The id of its answer."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (UniqueConstraint("run_id", "place", name="messages_into_a_run"),)


class RunRequest(Base):
    """A tool call that waits for an answer, or has waited for one."""

    __tablename__ = "run_requests"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    """The attempt that came to wait for it; a model may give the id of a call twice in a run."""
    place: Mapped[int] = mapped_column(primary_key=True)
    request_id: Mapped[str]
    """The tool call's id."""
    kind: Mapped[str]
    tool_name: Mapped[str]
    args: Mapped[str]
    """A JSON object."""
    prompt: Mapped[str | None]
    """The tool's prompt for people."""
    schema: Mapped[str | None]
    """JSON Schema: of the arguments that an approval may change, or of the result."""
    details: Mapped[str | None] = mapped_column("metadata")
    """A JSON object that the tool gets back."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    answer: Mapped[str | None]
    """A JSON object, as the caller gave it, but for the `request_id`."""
    answered_by: Mapped[str | None]
    answered_at: Mapped[datetime | None]
    answer_entry: Mapped[int | None]
    """The `n` of its event."""


class Schedule(Base):
    """A query that is asked at the times of a cron expression."""

    __tablename__ = "schedules"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    user_id: Mapped[UUID]
    key_reference: Mapped[bytes | None]
    """Of the key that it was made with: once that is not valid any more, the schedule pauses."""
    cron: Mapped[str]
    timezone: Mapped[str]
    thread_id: Mapped[UUID | None] = mapped_column(ForeignKey("threads.id", ondelete="CASCADE"))
    agent_type: Mapped[str]
    query: Mapped[str]
    multitask_strategy: Mapped[str | None]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    """As the caller gave it: `jsonb` would write out `1e308` in 309 digits."""
    options: Mapped[dict[str, Any] | None]
    """The chosen options of each run; they fitted the agent's schema when they were given."""
    deadline_seconds: Mapped[float | None]
    wait_seconds: Mapped[float | None]
    webhook_url: Mapped[str | None]
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    next_times: Mapped[list[datetime]] = mapped_column(ARRAY(DateTime(timezone=True)))
    """The first is the next tick; empty while it is paused."""
    due_at: Mapped[datetime | None]
    """When that tick is tried: at its time, or later where there was no room for its run; null while it is paused."""
    last_run_id: Mapped[UUID | None]
    failed_ticks: Mapped[int] = mapped_column(server_default=text("0"))
    """Ticks without a run, since the last one with a run."""
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """Why the last tick made no run."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index("schedules_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index("schedules_of_a_user", "tenant", "user_id", "created_at", "id"),
        Index("schedules_of_a_thread", "thread_id", postgresql_where=text("thread_id IS NOT NULL")),
    )


class FileContent(Base):
    """The bytes of files: of a tenant, one for each hash. It goes with the last file that has it, by a trigger."""

    __tablename__ = "file_contents"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    sha256: Mapped[bytes]
    size: Mapped[int] = mapped_column("bytes", BigInteger)

    __table_args__ = (UniqueConstraint("tenant", "sha256", name="one_content_a_hash"),)


class FileChunk(Base):
    """A piece of these bytes; all have the same length, but for the last."""

    __tablename__ = "file_chunks"

    content_id: Mapped[UUID] = mapped_column(ForeignKey("file_contents.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes]


class File(Base):
    """A file of a user's."""

    __tablename__ = "files"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    user_id: Mapped[UUID]
    filename: Mapped[str | None]
    media_type: Mapped[str]
    size: Mapped[int] = mapped_column("bytes", BigInteger)
    content_id: Mapped[UUID] = mapped_column(ForeignKey("file_contents.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    """It is erased after this time, unless a run uses it."""
    in_use: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether a run uses it; a trigger of `file_uses` keeps it."""

    __table_args__ = (
        Index("files_of_a_user", "tenant", "user_id", "created_at", "id", postgresql_include=["bytes"]),
        Index("files_of_a_content", "content_id"),
        Index("files_to_erase", "expires_at", postgresql_where=text("NOT in_use")),
    )


class FileUse(Base):
    """A run whose query, messages or transcript refer to a file; triggers write the attached ones."""

    __tablename__ = "file_uses"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    file_id: Mapped[UUID] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"), primary_key=True)

    __table_args__ = (Index("uses_of_a_file", "file_id"),)


class IdempotencyKey(Base):
    """The result of a call with a caller's key; written in the transaction that created it."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[bytes]
    created: Mapped[UUID]
    """The id of the thread, run or batch."""
    expires_at: Mapped[datetime]

    __table_args__ = (Index("idempotency_keys_to_erase", "expires_at"),)


class WebhookDelivery(Base):
    """An event that is to be delivered to a URL; a trigger writes it in the transaction of the event."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    """The `webhook-id` of every attempt."""
    tenant: Mapped[str]
    user_id: Mapped[UUID]
    type: Mapped[str]
    """The type of the event, `<noun>.<status>`."""
    resource_id: Mapped[UUID]
    """The row of the event, in the table of its noun; the body is made from it."""
    url: Mapped[str]
    occurred_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    status: Mapped[str] = mapped_column(server_default=text("'pending'"))
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    """Raised by every claim: the fence."""
    step: Mapped[int] = mapped_column(server_default=text("0"))
    """Attempts on the schedule, which a redelivery begins anew."""
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_attempt_at: Mapped[datetime | None]
    response_status: Mapped[int | None]
    """Of the last attempt."""
    error: Mapped[str | None]
    """Why the last attempt had no response."""

    __table_args__ = (
        Index("webhook_deliveries_due", "due_at", postgresql_where=text("status = 'pending'")),
        Index("webhook_deliveries_due_of_a_tenant", "tenant", "due_at", postgresql_where=text("status = 'pending'")),
        Index("webhook_deliveries_of_a_resource", "resource_id", postgresql_where=text("status = 'pending'")),
        Index("webhook_deliveries_of_a_user", "tenant", "user_id", "created_at", "id"),
        Index("webhook_deliveries_of_a_user_in_a_status", "tenant", "user_id", "status", "created_at", "id"),
        Index("webhook_deliveries_to_erase", "created_at", postgresql_where=text("status <> 'pending'")),
    )


class WebhookSecret(Base):
    """The keys that sign a tenant's webhooks; the highest number is the one in use."""

    __tablename__ = "webhook_secrets"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    secret: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKeyRow(Base):
    """A key of a tenant, of which only the hash is kept; see `shared/api_keys.py`."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    label: Mapped[str]
    prefix: Mapped[str]
    """The first characters of the key, by which people recognise it."""
    key_hash: Mapped[str]
    """The hexadecimal SHA-256 of the key."""
    scopes: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """The scopes of the key; null for everything."""
    agents: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """The agents that may be asked with it; null for all."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """At most half a minute old."""
    own_user: Mapped[UUID | None]
    """The user that a call with it is of that names none, where a former key was that user; null for the key's own."""
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("key_hash", name="one_api_key_a_hash"),
        Index("api_keys_changed", "changed_at"),
        Index("api_keys_of_a_tenant", "tenant", "created_at", "id"),
    )


class UserTokenRevocation(Base):
    """A user whose tokens up to a time are void; see `shared/user_tokens.py`."""

    __tablename__ = "user_token_revocations"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    revoked_before: Mapped[datetime]

    __table_args__ = (Index("user_token_revocations_since", "revoked_before"),)


class UserDeletion(Base):
    """That everything of a user is to be erased; see `api/erasing.py`."""

    __tablename__ = "user_deletions"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    user_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    """What is older is erased."""
    finished_at: Mapped[datetime | None]
    """When all of it was gone."""

    __table_args__ = (Index("user_deletions_unfinished", "created_at", postgresql_where=text("finished_at IS NULL")),)


class ServiceSecret(Base):
    """A secret that all processes of the service share, made by the first that needs it."""

    __tablename__ = "service_secrets"

    name: Mapped[str] = mapped_column(primary_key=True)
    secret: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ServiceMinute(Base):
    """Figures of the service in one minute, kept for a day: the data for the plots of the operations page."""

    __tablename__ = "service_minutes"

    minute: Mapped[datetime] = mapped_column(primary_key=True)
    """When it began."""
    figures: Mapped[dict[str, Any]]


class ApiProcess(Base):
    """An API process; it writes here that it lives."""

    __tablename__ = "api_processes"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    version: Mapped[str]
    streams: Mapped[int]
    """Calls that it keeps open: streams and waits."""
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
