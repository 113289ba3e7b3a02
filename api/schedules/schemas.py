"""The resources of schedules, as clients send and see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Path
from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from agent_relay.api.schedules.cron import LONGEST, zones
from agent_relay.api.schemas import (
    GIVEN,
    LEFT_OUT,
    AgentType,
    DeadlineSeconds,
    Metadata,
    Options,
    Request,
    WaitSeconds,
    WebhookUrl,
)
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.schemas import Resource


def _known_zone(value: str) -> str:
    if value not in zones():
        raise PydanticCustomError("unknown_timezone", "Must be a time zone of the IANA, such as Europe/Berlin or UTC")
    return value


ScheduleId = Annotated[UUID, Path(description="The schedule's id.")]
Cron = Annotated[str, Field(min_length=1, max_length=LONGEST)]
TimeZone = Annotated[str, Field(max_length=64), AfterValidator(_known_zone)]
TickStrategy = Literal["enqueue", "reject", "interrupt", "rollback"]
"""Those of `Strategy` that make a run."""
Query = Annotated[str, Field(min_length=1)]


class NewSchedule(Request):
    """A query that is to be asked again and again, of an agent or in a thread."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "cron": "0 8 * * MON-FRI",
                    "timezone": "Europe/Berlin",
                    "agent_type": "bank_support",
                    "query": "What is my balance?",
                }
            ],
            "oneOf": [
                {"required": ["thread_id"], "properties": {"thread_id": GIVEN, "agent_type": LEFT_OUT}},
                {
                    "required": ["agent_type"],
                    "properties": {"agent_type": GIVEN, "thread_id": LEFT_OUT, "multitask_strategy": LEFT_OUT},
                },
            ],
        }
    )

    cron: Cron
    """Minute, hour, day of month, month, day of week; or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`."""
    timezone: TimeZone = "UTC"
    """The time zone of the IANA that `cron` is meant in."""
    thread_id: UUID | None = None
    """The thread to ask in."""
    agent_type: AgentType | None = None
    """Instead of a thread: the agent to ask, each time without a memory."""
    query: Query
    """The query of each run."""
    multitask_strategy: TickStrategy | None = None
    """When the thread has unfinished runs at that time, see `POST /runs`. With `reject`, that tick makes no run."""
    metadata: Metadata = Field(default_factory=dict)
    """Anything of yours: that of each run."""
    options: Options | None = None
    """The chosen options of the agent, for each run; see `POST /runs`."""
    deadline_s: DeadlineSeconds | None = None
    """As of `POST /runs`, for each run."""
    wait_deadline_s: WaitSeconds | None = None
    """As of `POST /runs`, for each run."""
    webhook_url: WebhookUrl | None = None
    """As of `POST /runs`, for each run."""
    paused: Annotated[bool, Field(strict=True)] = False
    """Whether it makes no runs until that is changed."""

    @model_validator(mode="after")
    def _one_target(self) -> NewSchedule:
        if (self.thread_id is None) == (self.agent_type is None):
            raise PydanticCustomError("one_target", "Give either thread_id or agent_type")
        if self.thread_id is None and self.multitask_strategy is not None:
            raise PydanticCustomError("strategy_without_thread", "multitask_strategy needs a thread_id")
        return self


class ScheduleChanges(Request):
    """Changes of a schedule. A field that is left out stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"paused": True}], "minProperties": 1})

    cron: Cron = Field(default_factory=str)
    """As of a new schedule. The next tick is counted from now."""
    timezone: TimeZone = Field(default_factory=str)
    """As of a new schedule. The next tick is counted from now."""
    query: Query = Field(default_factory=str)
    """The query from now on."""
    metadata: Metadata = Field(default_factory=dict)
    """All of the metadata."""
    options: Options | None = None
    """All of the options; null chooses none."""
    deadline_s: DeadlineSeconds | None = None
    """As of `POST /runs`; null for the service's default."""
    wait_deadline_s: WaitSeconds | None = None
    """As of `POST /runs`; null for the service's default."""
    webhook_url: WebhookUrl | None = None
    """As of `POST /runs`; null for none."""
    paused: Annotated[bool, Field(strict=True)] = False
    """`true` makes no more runs; `false` goes on with the next tick from now, with the key of this call."""

    @model_validator(mode="after")
    def _some(self) -> ScheduleChanges:
        if not self.model_fields_set:
            raise PydanticCustomError("nothing_to_change", "Give what is to be changed")
        return self


class TickError(Resource):
    """Why a tick made no run."""

    code: str
    """As the problem's of `POST /runs`; or `key_gone`: the key that the schedule was made with is not valid."""
    message: str
    """The reason, for people."""


class Schedule(Resource):
    """A query that is asked again and again."""

    id: UUID
    """The schedule's id."""
    cron: str
    """When it is asked."""
    timezone: str
    """The time zone that `cron` is meant in."""
    thread_id: UUID | None
    """The thread that is asked in."""
    agent_type: str
    """The agent that is asked."""
    query: str
    """The query of each run."""
    multitask_strategy: str | None
    """The rule for a thread that has unfinished runs."""
    metadata: Metadata
    """The metadata of each run."""
    options: dict[str, Any] | None
    """The chosen options of the agent for each run."""
    deadline_s: float | None
    """Of each run; null for the service's default."""
    wait_deadline_s: float | None
    """Of each run; null for the service's default."""
    webhook_url: str | None
    """Of each run."""
    paused: bool
    """Whether it makes no runs. The service pauses one that cannot make any; `last_error` has the reason."""
    next_at: datetime | None
    """The next tick; null while it is paused."""
    next_times: list[datetime]
    """The next ticks, at most five; none while it is paused."""
    last_run_id: UUID | None
    """The run that it made last."""
    last_status: RunStatus | str | None
    """That run's status; null where there is none, or it was erased."""
    consecutive_failures: int
    """Of its newest fifty runs, those that failed since the last that succeeded, and ticks since then without a run."""
    last_error: TickError | None
    """Why the last tick made no run; null if it made one."""
    created_at: datetime
    """When it was made."""
    updated_at: datetime
    """When it was changed last."""
