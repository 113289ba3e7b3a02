"""What clients send, and what only responses show; `shared/resources.py` has what webhooks show as well."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Path
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from shared.api_keys import Scope
from shared.resources import Metadata, Resource, RunError
from shared.runs import Strategy
from shared.settings import TENANT
from shared.webhooks import DeliveryStatus
from shared.webhooks.addresses import LONGEST_URL

ThreadId = Annotated[UUID, Path(description="The thread's id.")]
RunId = Annotated[UUID, Path(description="The run's id.")]
DeliveryId = Annotated[UUID, Path(description="The delivery's id.")]
DeadlineSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
WebhookUrl = Annotated[str, Field(max_length=LONGEST_URL)]


class Request(BaseModel):
    """What a request asks; a field that is not known is refused."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")


class Agent(Resource):
    """An agent that workers have registered."""

    agent_type: str
    """The name to ask it by."""
    description: str
    """What it is for."""
    output_schema: dict[str, Any]
    """JSON Schema of its output."""
    served: bool
    """Whether a living worker serves it. A query for one that is not served waits, or is refused as `agent_not_served`
    once no worker has served it for a while."""


class NewThread(Request):
    """A conversation to be begun."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"agent_type": "bank_support", "metadata": {"channel": "web"}}]}
    )

    agent_type: str = Field(max_length=63)
    """The agent to talk to, see `GET /agents`."""
    metadata: Metadata = Field(default_factory=dict)
    """Anything of yours; the agent's dependencies may use it."""


class Thread(Resource):
    """A conversation of one user with one agent."""

    id: UUID
    """The thread's id."""
    user_id: UUID
    """The user whose thread it is."""
    agent_type: str
    """The agent that answers."""
    created_at: datetime
    """When it was begun."""
    updated_at: datetime
    """When a query or an answer came last."""
    metadata: Metadata
    """What you gave when you began it."""


class Message(Resource):
    """One message of a thread."""

    id: UUID
    """The message's id; of an answer, the run's `message_id`."""
    role: Literal["user", "assistant", "system"]
    """Who speaks."""
    content: str
    """The query; or the validated output as JSON text (of a text agent: the text)."""
    created_at: datetime
    """When it was stored."""
    metadata: Metadata
    """`run_id`; of an answer also `usage`, `model`, and `status: "interrupted"` where its run was cancelled."""


class ThreadWithMessages(Thread):
    """A thread and its last messages."""

    messages: list[Message]
    """The last 100, in the order of the conversation."""


class NewQuery(Request):
    """A query for an agent, in a thread or without one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"agent_type": "bank_support", "query": "What is my balance?"},
                {"thread_id": "0198c5a4-7c9e-7000-8000-000000000000", "query": "What is my balance?"},
            ]
        }
    )

    thread_id: UUID | None = None
    """The thread to ask in."""
    agent_type: str | None = Field(default=None, max_length=63)
    """Instead of a thread: the agent to ask, once and without a memory."""
    query: str = Field(min_length=1)
    """What is asked."""
    multitask_strategy: Strategy | None = None
    """When the thread has unfinished runs: wait behind them (`enqueue`, the default), refuse (`reject`, 409), cancel
    them and keep what they produced (`interrupt`), or cancel them and erase their messages (`rollback`)."""
    metadata: Metadata = Field(default_factory=dict)
    """Anything of yours; the agent's dependencies may use it."""
    deadline_s: DeadlineSeconds | None = None
    """Seconds from acceptance after which the run fails as `deadline_exceeded`."""
    webhook_url: WebhookUrl | None = None
    """Where to post the run once it has ended, see *Webhooks*: a public https address."""

    @model_validator(mode="after")
    def _one_target(self) -> NewQuery:
        if (self.thread_id is None) == (self.agent_type is None):
            raise PydanticCustomError("one_target", "Give either thread_id or agent_type")
        if self.thread_id is None and self.multitask_strategy is not None:
            raise PydanticCustomError("strategy_without_thread", "multitask_strategy needs a thread_id")
        return self


class AttendedQuery(NewQuery):
    """A query that its caller stays on the line for."""

    on_disconnect: Literal["continue", "cancel"] = "continue"
    """What becomes of the run when the caller hangs up before its end."""


class Answer(Resource):
    """A finished answer."""

    thread_id: UUID | None
    """The thread that it stands in."""
    message_id: UUID
    """The answer's message."""
    run_id: UUID
    """The run that gave it."""
    response: str
    """The validated output as JSON text (of a text agent: the text)."""
    output: JsonValue
    """The same as the value itself (of a text agent: the text)."""


class StreamTicket(Resource):
    """The right to follow one run without headers."""

    url: str
    """The stream, to be given to `EventSource` as it is."""
    expires_at: datetime
    """Until when it opens the stream."""


class WebhookSecret(Resource):
    """The secret that your tenant's webhooks are signed with."""

    secret: str
    """The secret, as libraries of Standard Webhooks take it: `whsec_…`."""
    created_at: datetime
    """When it was made."""
    former_until: datetime | None
    """Until when webhooks are signed with the former secret as well; null if they are not."""


class WebhookDelivery(Resource):
    """One event for one URL, and how far its delivery is."""

    id: UUID
    """The delivery's id: the `webhook-id` of every attempt."""
    type: str
    """The event: `run.succeeded`, `run.failed` or `run.cancelled`."""
    resource_id: UUID
    """The id of the run that it tells of."""
    url: str
    """Where it goes."""
    status: DeliveryStatus | str
    """`pending`, `delivered`, `failed` (given up) or `disabled` (the receiver said 410 to an event for this URL)."""
    attempts: int
    """How often it was tried."""
    response_status: int | None
    """What the receiver said last."""
    error: str | None
    """Why the last attempt had no response: `timeout`, `connection_failed`, `tls_failed`, `unknown_host`,
    `address_not_public`; or why there can be none: `resource_gone`."""
    created_at: datetime
    """When the event happened."""
    last_attempt_at: datetime | None
    """When it was tried last."""
    next_attempt_at: datetime | None
    """When it is tried next, if it is; while it is being tried, when that is given up as lost."""


class DeadLetter(Resource):
    """A failed run that nobody has had asked again. What was asked is not shown: it is the user's."""

    run_id: UUID
    """The run that failed."""
    tenant: str
    """Whose it is."""
    user_id: UUID
    """The tenant's user."""
    thread_id: UUID | None
    """The thread that was asked in; null for a run without one."""
    agent_type: str
    """The agent that was asked."""
    error: RunError
    """Why it failed."""
    attempt: int
    """How many times a worker had begun to answer."""
    crashes: int
    """How many workers died under it."""
    created_at: datetime
    """When it was accepted."""
    finished_at: datetime
    """When it failed."""


class Requeue(Request):
    """Dead letters to be asked again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"run_ids": ["0198c5a4-7c9e-7000-8000-000000000000"]}]})

    run_ids: list[UUID] = Field(min_length=1, max_length=100)
    """The runs that failed."""
    deadline_s: DeadlineSeconds | None = None
    """Seconds from now after which the new runs fail; without it, each has as many as its predecessor had."""


class Requeued(Resource):
    """What became of one of them."""

    run_id: UUID
    """The run that failed."""
    outcome: Literal["requeued", "already_requeued", "not_found", "unknown_agent"]
    """`already_requeued`: it was before, by whomever. `not_found`: it is no dead letter. `unknown_agent`: no worker has
    registered its agent."""
    requeued_as: UUID | None
    """The new run, where there is one; it is its user's, with `retry_of`."""


class RequeuedRuns(Resource):
    """What became of all of them."""

    items: list[Requeued]
    """In the order of the request."""


Tenant = Annotated[str, Field(pattern=f"^{TENANT.pattern}$")]
KeyId = Annotated[UUID, Path(description="The key's id.")]


class NewApiKey(Request):
    """A key to be made."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tenant": "acme", "label": "web", "scopes": ["ask"]}]})

    tenant: Tenant
    """Whom it belongs to."""
    label: str = Field(default="", max_length=200)
    """What it is for."""
    scopes: list[Scope] | None = Field(default=None, min_length=1, max_length=len(Scope))
    """What it may be used for; null for everything."""
    agents: list[Annotated[str, Field(max_length=63)]] | None = Field(default=None, max_length=100)
    """The agents that may be asked with it; null for all."""
    expires_at: AwareDatetime | None = None
    """When it stops being valid; null for never."""


class ApiKey(Resource):
    """A key, without the key itself, which is not kept."""

    id: UUID
    """Its id."""
    tenant: str
    """Whom it belongs to."""
    label: str
    """What it is for."""
    prefix: str
    """Its first characters, by which people know it."""
    scopes: list[str] | None
    """What it may be used for; null for everything."""
    agents: list[str] | None
    """The agents that may be asked with it; null for all."""
    created_at: datetime
    """When it was made."""
    expires_at: datetime | None
    """When it stops being valid."""
    revoked_at: datetime | None
    """When it was revoked."""
    last_used_at: datetime | None
    """When it was used last; at most half a minute behind."""


class CreatedApiKey(ApiKey):
    """A key that was just made."""

    key: str
    """The key itself. It is not kept and cannot be shown again."""


class Rotation(Request):
    """How a key is replaced."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_hours": 24}]})

    overlap_hours: float = Field(default=24, ge=0, le=8760, allow_inf_nan=False)
    """How long the former key stays valid."""
