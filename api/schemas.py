"""Requests of clients, and parts of responses; `shared/schemas.py` has those of webhooks as well."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Path
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from agent_relay.shared.api_keys import Scope
from agent_relay.shared.attachments import MOST_ATTACHMENTS
from agent_relay.shared.clock import now
from agent_relay.shared.files import FileRow
from agent_relay.shared.runs.accept import Strategy
from agent_relay.shared.runs.into_run import MessageStatus
from agent_relay.shared.schemas import Metadata, Resource, RunError, Usage
from agent_relay.shared.settings import AGENT_TYPE, TENANT
from agent_relay.shared.user_tokens import LONGEST_SECONDS
from agent_relay.shared.webhooks import DeliveryStatus
from agent_relay.shared.webhooks.addresses import LONGEST_URL

ThreadId = Annotated[UUID, Path(description="The thread's id.")]
RunId = Annotated[UUID, Path(description="The run's id.")]
DeliveryId = Annotated[UUID, Path(description="The delivery's id.")]
DeadlineSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
LONGEST_WAIT_DEADLINE_SECONDS = 7_776_000
WaitSeconds = Annotated[float, Field(gt=0, le=LONGEST_WAIT_DEADLINE_SECONDS, allow_inf_nan=False, strict=True)]
AgentType = Annotated[str, Field(max_length=63, json_schema_extra={"pattern": f"^{AGENT_TYPE.pattern}$"})]
Title = Annotated[str, Field(min_length=1, max_length=200)]
WebhookUrl = Annotated[
    str,
    Field(max_length=LONGEST_URL, json_schema_extra={"format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://[!-~]+$"}),
]

_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)


def _date_time(value: object) -> object:
    """Let only a date-time of RFC 3339 pass: pydantic takes numbers, too, and guesses whether they are milliseconds."""
    if value is None or (isinstance(value, str) and _DATE_TIME.fullmatch(value)):
        return value
    raise PydanticCustomError("datetime_type", "Must be a date and time with its zone, such as 2027-01-31T12:00:00Z")


def _of_our_time(value: datetime | None) -> datetime | None:
    """Accept only a time that is valid in every zone: PostgreSQL and Python have others."""
    if value is not None and not _FIRST_YEAR <= value.year <= _LAST_YEAR:
        raise PydanticCustomError("datetime_out_of_range", "Must be in a year from 1970 to 9998")
    return value


def _within_reach(value: datetime | None) -> datetime | None:
    """Let only a start pass that is not too far away."""
    if value is not None and value > now() + timedelta(seconds=LONGEST_START_SECONDS):
        raise PydanticCustomError("less_than_equal", "At most 90 days from now")
    return value


_FIRST_YEAR, _LAST_YEAR = 1970, 9998
Time = Annotated[AwareDatetime | None, BeforeValidator(_date_time), AfterValidator(_of_our_time)]
LONGEST_START_SECONDS = 7_776_000
StartAt = Annotated[Time, AfterValidator(_within_reach)]
StartAfterSeconds = Annotated[float, Field(ge=0, le=LONGEST_START_SECONDS, allow_inf_nan=False, strict=True)]


Options = Metadata
"""Choices among an agent's options; its schema says more."""


LONGEST_USER_NAME = 128
USER_NAME = rf"[!-~]([ -~]{{0,{LONGEST_USER_NAME - 2}}}[!-~])?"
"""A user as callers name it: printable ASCII characters; a space at either end would be lost in a header."""

MOST_OF_TOKEN = 50
"""Threads, and agents, that a token may be restricted to: it must fit into a header."""

UserName = Annotated[str, Field(pattern=f"^{USER_NAME}$", max_length=LONGEST_USER_NAME)]


class Request(BaseModel):
    """The fields of a request; an unknown field is refused."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")


class Capabilities(Resource):
    """The inputs of an agent, and the properties of its runs."""

    attachments: list[str]
    """The media types that may be attached to a query, as `application/pdf` or `image/*`; empty where none may."""
    waiting: bool
    """Whether its runs may wait for an approval, an answer or a result, as far as its worker can tell."""
    reasoning: bool
    """Whether streams and steps show what its model thinks."""


class Agent(Resource):
    """An agent that workers have registered."""

    agent_type: str
    """The name to ask it by."""
    description: str
    """A description for people."""
    examples: list[str]
    """Queries to begin with, as the agent brings them."""
    output_schema: dict[str, Any]
    """JSON Schema of its output."""
    options_schema: dict[str, Any] | None
    """JSON Schema of the `options` that you may choose; null where there are none."""
    capabilities: Capabilities
    """Its inputs and features."""
    served: bool
    """Whether a living worker serves it. A query for one that is not served waits, or is refused as `agent_not_served`
    once no worker has served it for a while."""


class NewThread(Request):
    """A conversation to be begun."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"agent_type": "bank_support", "metadata": {"channel": "web"}}]}
    )

    agent_type: AgentType
    """The agent to talk to, see `GET /agents`."""
    title: Title | None = None
    """Its name in a list."""
    metadata: Metadata = Field(default_factory=dict)
    """Anything of yours; the agent's dependencies may use it."""
    options: Options | None = None
    """The chosen options of the agent for all runs of the thread; a run may choose otherwise."""


class ThreadChanges(Request):
    """The changes; a field that is left out stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"title": "Lost card"}], "minProperties": 1})

    title: Title | None = None
    """Its name in a list; null removes it."""
    metadata: Metadata = Field(default_factory=dict)
    """All of its metadata; it replaces what was there before."""
    options: Options | None = None
    """All of its options; null chooses none. They hold for attempts that begin after it."""

    @model_validator(mode="after")
    def _some(self) -> ThreadChanges:
        if not self.model_fields_set:
            raise PydanticCustomError("nothing_to_change", "Give title, metadata or options")
        return self


class Thread(Resource):
    """A conversation of one user with one agent."""

    id: UUID
    """The thread's id."""
    user_id: UUID
    """The user to whom the thread belongs."""
    agent_type: str
    """The agent that answers."""
    title: str | None
    """Its name in a list."""
    created_at: datetime
    """When it was begun."""
    updated_at: datetime
    """When a query or an answer came last, or the thread was changed."""
    last_message_at: datetime | None
    """When the last of its messages was stored; null without any."""
    unfinished_runs: int
    """How many of its runs are queued, running or waiting."""
    metadata: Metadata
    """The metadata of its creation or last change."""
    options: dict[str, Any] | None
    """The chosen options of the agent for its runs, unless they choose otherwise."""


class Fork(Request):
    """Where a thread is forked."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"title": "Another way"}]})

    through_message_id: UUID | None = None
    """The last message that the new thread has: an answer, or a query that got none. Without it, everything."""
    title: Title | None = None
    """The title of the new thread; without it, that of the old one."""


class File(Resource):
    """A file that was uploaded, or that an agent made."""

    id: UUID
    """The file's id; `attachments` of a query take it as `file_id`."""
    filename: str | None
    """Its name, where one is known."""
    media_type: str
    """The media type, without parameters."""
    bytes: int
    """How long it is."""
    sha256: str
    """The SHA-256 of its bytes, in hexadecimal digits."""
    created_at: datetime
    """When it was stored."""


def file_of(row: FileRow) -> File:
    """Show a file's row."""
    return File(
        id=row.id,
        filename=row.filename,
        media_type=row.media_type,
        bytes=row.bytes,
        sha256=row.sha256,
        created_at=row.created_at,
    )


class MessageAttachment(Resource):
    """Something that was attached to a message."""

    file_id: UUID | None = None
    """The file, which may have been deleted since; null for an address."""
    url: str | None = None
    """The address; null for a file."""
    filename: str | None = None
    """The name of the file, where it has one."""
    media_type: str | None = None
    """The media type, if it is known."""
    bytes: int | None = None
    """How long the file is."""


class Message(Resource):
    """One message of a thread."""

    id: UUID
    """The message's id; of an answer, the run's `message_id`."""
    role: Literal["user", "assistant", "system"]
    """Who speaks."""
    content: str
    """The query; or the validated output as JSON text (of a text agent: the text)."""
    attachments: list[MessageAttachment]
    """Of a message of the user's: its attachments."""
    created_at: datetime
    """When it was stored."""
    metadata: Metadata
    """`run_id`; of an answer also `usage`, `model`, and `status: "interrupted"` where its run was cancelled."""


class Step(Resource):
    """A step of a run on the way to its answer."""

    index: int = 0
    """0, 1, 2, … of each run."""
    kind: Literal["response", "tool_call", "native_tool", "reasoning", "message"]
    """`response`: the model wrote text, or called tools. `tool_call`: a tool of the agent was called.
    `native_tool`: one of the model's provider. `reasoning`: the model's reasoning. `message`: a message that you sent
    into the run, at the place where the model received it."""
    tool_call_id: str | None = None
    """The call's id, as in the stream."""
    tool_name: str | None = None
    """The tool that was called."""
    args: JsonValue = None
    """The arguments of the call, as far as the agent lets them be shown."""
    result: JsonValue = None
    """The result of the call; null until it has returned."""
    text: str | None = None
    """The text or the thoughts; of a response that gives the output, also the output, as JSON text."""
    attempt: int | None = None
    """The attempt that finished it."""
    started_at: datetime | None = None
    """When it began, where that is known."""
    finished_at: datetime | None = None
    """When it ended, where that is known; null while a tool is being called, or waits for an answer."""
    usage: Usage | None = None
    """The usage of a response."""


class MessageWithSteps(Message):
    """One message of a thread, and the steps for it."""

    steps: list[Step] | None = None
    """With `include=steps`: the steps of the run, on its answer; if there is none (yet), on its query. Else null."""
    more_steps: bool | None = None
    """Whether the run did more than a page can show: `GET /runs/{id}/steps` has all."""


class ThreadWithMessages(Thread):
    """A thread and its last messages."""

    messages: list[Message]
    """The last 100, in the order of the conversation."""


def one_start(start_at: datetime | None, start_after_s: float | None) -> None:
    """Check that a start is given in one way.

    Raises:
        PydanticCustomError: it is given in both.
    """
    if start_at is not None and start_after_s is not None:
        raise PydanticCustomError("one_start", "Give either start_at or start_after_s")


GIVEN: JsonDict = {"type": "string"}
LEFT_OUT: JsonDict = {"type": "null"}


class Attachment(Request):
    """A file that belongs to a query: one that was uploaded, a public address, or the bytes themselves."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"file_id": "0198c5a4-7c9e-7000-8000-0000000000f1"}],
            "oneOf": [
                {
                    "required": ["file_id"],
                    "properties": {
                        "file_id": GIVEN,
                        "url": LEFT_OUT,
                        "data": LEFT_OUT,
                        "media_type": LEFT_OUT,
                        "filename": LEFT_OUT,
                    },
                },
                {
                    "required": ["url"],
                    "properties": {"url": GIVEN, "file_id": LEFT_OUT, "data": LEFT_OUT, "filename": LEFT_OUT},
                },
                {
                    "required": ["data", "media_type"],
                    "properties": {"data": GIVEN, "media_type": GIVEN, "file_id": LEFT_OUT, "url": LEFT_OUT},
                },
            ],
        }
    )

    file_id: UUID | None = None
    """A file of yours, see `POST /files`."""
    url: WebhookUrl | None = None
    """A public https address. A worker fetches it when the run begins; or the model does, if the agent is set so."""
    data: Annotated[str, Field(min_length=4, json_schema_extra={"contentEncoding": "base64"})] | None = None
    """The bytes themselves, in base64; they become a file of yours."""
    media_type: Annotated[str, Field(min_length=3, max_length=100)] | None = None
    """The media type: needed with `data`; with `url`, by default that of the response."""
    filename: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """With `data`: its name."""

    @model_validator(mode="after")
    def _one_source(self) -> Attachment:
        if sum(each is not None for each in (self.file_id, self.url, self.data)) != 1:
            raise PydanticCustomError("one_source", "Give either file_id, url or data")
        if self.data is not None and self.media_type is None:
            raise PydanticCustomError("type_of_data", "data needs a media_type")
        if self.file_id is not None and self.media_type is not None:
            raise PydanticCustomError("type_of_file", "A file has its own media_type: leave it out")
        if self.data is None and self.filename is not None:
            raise PydanticCustomError("name_without_data", "filename is for data: leave it out")
        return self


Attachments = Annotated[list[Attachment], Field(max_length=MOST_ATTACHMENTS)]


class NewQuery(Request):
    """A query for an agent, in a thread or without one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"agent_type": "bank_support", "query": "What is my balance?"},
                {"thread_id": "0198c5a4-7c9e-7000-8000-000000000000", "query": "What is my balance?"},
            ],
            "anyOf": [
                {"required": ["query"], "properties": {"query": GIVEN}},
                {"required": ["replace_from"], "properties": {"replace_from": GIVEN}},
            ],
            "oneOf": [
                {"required": ["thread_id"], "properties": {"thread_id": GIVEN, "agent_type": LEFT_OUT}},
                {
                    "required": ["agent_type"],
                    "properties": {
                        "agent_type": GIVEN,
                        "thread_id": LEFT_OUT,
                        "multitask_strategy": LEFT_OUT,
                        "replace_from": LEFT_OUT,
                    },
                },
            ],
        }
    )

    thread_id: UUID | None = None
    """The thread to ask in."""
    agent_type: AgentType | None = None
    """Instead of a thread: the agent to ask, once and without a memory."""
    replace_from: UUID | None = None
    """A message of yours in the thread: it and all after it are removed, and this query takes its place."""
    query: str | None = Field(default=None, min_length=1, validate_default=True)
    """The query; with `replace_from` it may be left out, to ask the same again, with the same attachments."""
    attachments: Attachments | None = None
    """Files that belong to the query, see *Files*."""
    multitask_strategy: Strategy | None = None
    """When the thread has unfinished runs: wait behind them (`enqueue`, the default), refuse (`reject`, 409), cancel
    them and keep what they produced (`interrupt`), cancel them and erase their messages (`rollback`), or send the query
    as a message into the one that is running (`steer`; it waits where none is): then that run is returned."""
    metadata: Metadata = Field(default_factory=dict)
    """Anything of yours; the agent's dependencies may use it."""
    options: Options | None = None
    """The chosen options of the agent, see `options_schema` of `GET /agents`; before those of its thread."""
    start_at: StartAt = None
    """No worker begins before this time, at most 90 days from now; one that has passed is now. In a thread, the query
    takes its place once it starts: queries that are asked before go before it."""
    start_after_s: StartAfterSeconds | None = None
    """Instead of `start_at`: seconds from acceptance."""
    deadline_s: DeadlineSeconds | None = None
    """Seconds from acceptance, or from its start, after which the run fails as `deadline_exceeded`."""
    wait_deadline_s: WaitSeconds | None = None
    """Seconds that the run may wait for answers, each time; then it fails as `answer_overdue`. 7 days, unless the
    service has another default. Meanwhile, the clock of `deadline_s` stands still."""
    webhook_url: WebhookUrl | None = None
    """Where to post the run once it has ended, or waits, see *Webhooks*: a public https address."""

    @field_validator("query")
    @classmethod
    def _asks_something(cls, query: str | None, info: ValidationInfo) -> str | None:
        if query is None and info.data.get("replace_from") is None:
            raise PydanticCustomError("missing", "Field required")
        return query

    @model_validator(mode="after")
    def _one_target(self) -> NewQuery:
        if (self.thread_id is None) == (self.agent_type is None):
            raise PydanticCustomError("one_target", "Give either thread_id or agent_type")
        if self.thread_id is None and self.multitask_strategy is not None:
            raise PydanticCustomError("strategy_without_thread", "multitask_strategy needs a thread_id")
        if self.replace_from is not None and self.thread_id is None:
            raise PydanticCustomError("replace_without_thread", "replace_from needs a thread_id")
        if self.options is not None and self.multitask_strategy is Strategy.STEER:
            raise PydanticCustomError("options_of_a_message", "A message into a run has no options: leave them out")
        one_start(self.start_at, self.start_after_s)
        if (self.start_at or self.start_after_s) and (
            self.replace_from is not None or self.multitask_strategy not in {None, Strategy.ENQUEUE}
        ):
            raise PydanticCustomError(
                "starts_behind",
                "A run that starts later goes behind what its thread holds then: leave out replace_from, and every"
                " multitask_strategy but enqueue",
            )
        return self


class NewMessage(Request):
    """A message into a run."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "Only the card that ends in 12, please."}]})

    query: str = Field(min_length=1)
    """The message for the agent."""
    attachments: Attachments | None = None
    """Files that belong to it."""


class SentMessage(Resource):
    """A message into a run, and its state."""

    id: UUID
    """The message's id, in its thread and in the event `message_enqueued`."""
    status: MessageStatus
    """`pending`: the agent gets it before its next request to the model. `enqueued`: it has got it. `queued`: the run
    ended first, and the message is a run of its own in the thread. `run_ended`: the run, which has no thread, ended
    first, and nothing comes of the message."""
    run_id: UUID
    """The run that it is in, or has become."""


class AttendedQuery(NewQuery):
    """A query that its caller stays on the line for."""

    on_disconnect: Literal["continue", "cancel"] = "continue"
    """The effect on the run when the caller disconnects before its end."""


def _exactly(field: str, *more: str) -> JsonDict:
    """Say in JSON Schema that one field decides, with those that may stand beside it."""
    others: JsonDict = {name: False for name in _OF_ANSWERS if name not in {field, *more}}
    return {"required": [field], "properties": others}


_OF_ANSWERS = ("approve", "args", "message", "result", "error")


class GivenAnswer(Request):
    """An answer to one of a run's `requests`: `approve`, `result` or `error`, by its `kind`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["approve"],
                    "properties": {"approve": {"const": True}, "message": False, "result": False, "error": False},
                },
                {
                    "required": ["approve"],
                    "properties": {"approve": {"const": False}, "args": False, "result": False, "error": False},
                },
                _exactly("result"),
                _exactly("error"),
            ]
        }
    )

    request_id: str = Field(min_length=1)
    """The request that is answered."""
    approve: Annotated[bool, Field(strict=True)] = False
    """Of an `approval`: whether the call may be made."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    """With `approve: true`: arguments to call the tool with instead."""
    message: str = ""
    """With `approve: false`: a message to the agent."""
    result: JsonValue = None
    """Of a `question` the answer, of an `external` call its result."""
    error: str = ""
    """Instead of a `result`: an error, as a message to the agent."""

    @model_validator(mode="after")
    def _one_kind(self) -> GivenAnswer:
        given = self.model_fields_set - {"request_id"}
        may = {"approve": {"args"} if self.approve else {"message"}, "result": set[str](), "error": set[str]()}
        if not any(name in given and given <= {name, *beside} for name, beside in may.items()):
            raise PydanticCustomError(
                "one_answer",
                "Give `approve: true` and perhaps `args`, `approve: false` and perhaps `message`, `result`, or `error`",
            )
        return self

    @property
    def content(self) -> dict[str, JsonValue]:
        """The answers."""
        return {name: getattr(self, name) for name in _OF_ANSWERS if name in self.model_fields_set}


class GivenAnswers(Request):
    """Answers to requests of a run that waits."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"answers": [{"request_id": "call_1", "approve": True}]},
                {"answers": [{"request_id": "call_2", "result": "The blue one."}]},
            ]
        }
    )

    answers: list[GivenAnswer] = Field(min_length=1, max_length=500)
    """Answers to some of the open requests, or to all of them. The run goes on once none is open."""


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


class DataDeletion(Resource):
    """The deletion of everything of a user."""

    id: UUID
    """Its id."""
    status: Literal["in_progress", "completed"]
    """`completed` once nothing is left."""
    created_at: datetime
    """When it was asked for; what was there then goes."""
    finished_at: datetime | None
    """When all of it was gone."""


class NewUserToken(Request):
    """A token to be made."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "auth0|5f7c8ec7", "ttl_s": 3600}]})

    user_id: UserName
    """The user to act as, in the form of `X-User-ID`."""
    ttl_s: float = Field(ge=1, le=LONGEST_SECONDS, allow_inf_nan=False, strict=True)
    """Seconds that it is valid for."""
    threads: list[UUID] | None = Field(default=None, min_length=1, max_length=MOST_OF_TOKEN)
    """The only threads of the user that exist for it; null for all. With it, nothing can be asked without a thread."""
    agent_types: list[AgentType] | None = Field(default=None, min_length=1, max_length=MOST_OF_TOKEN)
    """The agents that may be asked with it; null for those of the key."""
    read_only: bool = Field(default=False, strict=True)
    """Whether it only reads."""


class UserToken(Resource):
    """The right to act as one user for a while."""

    token: str
    """Send it as `Authorization: Bearer`."""
    expires_at: datetime
    """Until when it is valid, unless it is revoked before."""


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
    """The event: `run.succeeded`, `run.failed`, `run.cancelled` or `run.waiting`; the same of batches."""
    resource_id: UUID
    """The id of its run."""
    url: str
    """Where it goes."""
    status: DeliveryStatus | str
    """`pending`, `delivered`, `failed` (given up) or `disabled` (the receiver said 410 to an event for this URL)."""
    attempts: int
    """How often it was tried."""
    response_status: int | None
    """The status of the last response of the receiver."""
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
    """A failed run that was not requeued. Its query is not shown: it is the user's."""

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
    """The result for one of them."""

    run_id: UUID
    """The run that failed."""
    outcome: Literal["requeued", "already_requeued", "not_found", "unknown_agent"]
    """`already_requeued`: it was requeued before. `not_found`: it is no dead letter. `unknown_agent`: no worker has
    registered its agent."""
    requeued_as: UUID | None
    """The new run, where there is one; it is its user's, with `retry_of`."""


class RequeuedRuns(Resource):
    """The results for all of them."""

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
    """Its use, for people."""
    scopes: list[Scope] | None = Field(default=None, min_length=1, max_length=len(Scope))
    """Its scopes; null for everything."""
    agents: list[Annotated[str, Field(pattern=f"^{AGENT_TYPE.pattern}$")]] | None = Field(default=None, max_length=100)
    """The agents that may be asked with it; null for all."""
    expires_at: Time = None
    """When it stops being valid; null for never."""


class ApiKey(Resource):
    """A key, without the key itself, which is not kept."""

    id: UUID
    """Its id."""
    tenant: str
    """Whom it belongs to."""
    label: str
    """Its use, for people."""
    prefix: str
    """Its first characters, by which people recognise it."""
    scopes: list[str] | None
    """Its scopes; null for everything."""
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

    overlap_hours: float = Field(default=24, ge=0, le=8760, allow_inf_nan=False, strict=True)
    """How long the former key stays valid."""
