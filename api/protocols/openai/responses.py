"""Routes: responses, of which each is a run; those of a conversation are the runs of a thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import JsonValue, model_validator
from pydantic_core import PydanticCustomError, from_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.answering import Answerer
from agent_relay.api.attachments import in_their_places
from agent_relay.api.dependencies import (
    CallLimits,
    Cancel,
    Database,
    RunLog,
    RunRelay,
    ServiceSettings,
    Submit,
    TakeAnswers,
)
from agent_relay.api.json_schema import check_value
from agent_relay.api.problems import Refused, invalid, unavailable
from agent_relay.api.protocols.openai.content import parts_of
from agent_relay.api.protocols.openai.errors import failed
from agent_relay.api.protocols.openai.ids import MESSAGE, response_id, run_of, thread_of
from agent_relay.api.protocols.openai.inputs import Input, InputItem, check_size, files_of, outputs_of, query_of
from agent_relay.api.protocols.openai.parameters import Empty, Hint, Nothing, NoTools, One, only
from agent_relay.api.protocols.openai.response_object import Beside, calls_of, open_requests, response_of
from agent_relay.api.protocols.openai.response_renderer import ResponseRenderer
from agent_relay.api.protocols.openai.sequence import DELTA, FROM_THE_START, LIFECYCLE, Place, text_at
from agent_relay.api.protocols.openai.thread_of_responses import beside_of, discard, enter, fork_after, new_thread
from agent_relay.api.queries import owned_run
from agent_relay.api.requests.idempotency import REPLAYED_HEADER, IdempotencyKey
from agent_relay.api.requests.identity import Caller, Owner
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.routes.agent import cancel_when_gone, cancelling
from agent_relay.api.schemas import AgentType, GivenAnswer, NewQuery
from agent_relay.api.schemas import Request as Schema
from agent_relay.api.streaming.follow import possible
from agent_relay.api.streaming.response import Follower, Stream
from agent_relay.api.submission import Asked, Submitter, ended
from agent_relay.shared.away import skip_if_redis_away
from agent_relay.shared.clock import now
from agent_relay.shared.database.tables import TERMINAL, RunStatus
from agent_relay.shared.errors import NotFound, NotLast
from agent_relay.shared.event_log import EventLog, Id, final_text
from agent_relay.shared.idempotency import Key
from agent_relay.shared.rows import RunRow
from agent_relay.shared.runs.said import Said
from agent_relay.shared.schemas import RunRequest, requests_of
from agent_relay.shared.webhooks.outbox import none_waits

log = logging.getLogger(__name__)

router = APIRouter(prefix="/responses", route_class=StrictRoute)

GRACE_SECONDS = 30.0
"""A call waits for so long after the deadline of its run, which ends there."""
CANCEL_SECONDS = 5.0
MOST_ITEMS = 100

_DELETE = text(f"""
    DELETE FROM runs WHERE id = :id AND finished_at IS NOT NULL AND batch_id IS NULL AND {none_waits("runs")}
    RETURNING id
""")  # noqa: S608  (a constant)


class ConversationOf(Schema):
    """A conversation, by its id."""

    id: str


class StreamOptions(Schema):
    """What a stream has beside the answer."""

    include_obfuscation: Hint = None


class NewResponse(Schema):
    """A response to be made. Each parameter that is not here is refused by its name."""

    model: AgentType
    input: Input
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationOf | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None

    user: Hint = None
    safety_identifier: Hint = None
    prompt_cache_key: Hint = None
    prompt_cache_retention: Hint = None
    stream_options: StreamOptions | None = None
    service_tier: Annotated[JsonValue, only("auto", "default")] = None

    include: Empty = None
    temperature: One = None
    top_p: One = None
    top_logprobs: Annotated[JsonValue, only(0)] = None
    truncation: Annotated[JsonValue, only("disabled")] = None
    text: Annotated[JsonValue, only({"format": {"type": "text"}})] = None
    tools: Empty = None
    tool_choice: NoTools = None
    parallel_tool_calls: Annotated[JsonValue, only(True, False)] = None
    max_output_tokens: Nothing = None
    max_tool_calls: Nothing = None
    reasoning: Nothing = None
    prompt: Nothing = None

    @model_validator(mode="after")
    def _one_way_on(self) -> NewResponse:
        if self.previous_response_id is not None and self.conversation is not None:
            raise PydanticCustomError("one_way_on", "Give either previous_response_id or conversation")
        if self.store is False and self.conversation is not None:
            raise PydanticCustomError("not_stored", "A response of a conversation is stored: leave out store")
        return self


@dataclass(frozen=True, slots=True)
class _Begun:
    """A run that answers a call."""

    run: RunRow
    headers: dict[str, str]
    goes_on: bool = False
    """Whether it has begun before, and has been given the results of its calls."""


@router.post("")
async def create(
    request: Request,
    new: NewResponse,
    submitter: Submit,
    answerer: TakeAnswers,
    database: Database,
    relay: RunRelay,
    canceller: Cancel,
    calls: CallLimits,
    settings: ServiceSettings,
    caller: Caller,
    key: IdempotencyKey,
) -> Response:
    """Ask the agent, or give it the results of the calls that it waits for. The run goes on where its caller hangs up.

    One that is not stored is cancelled then, unless the caller can ask for it again by an `Idempotency-Key`.
    """
    outputs = outputs_of(new.input)

    async def begin() -> _Begun:
        if outputs:
            return await _answer(answerer, database, caller, new, outputs)
        return await _ask(submitter, database, caller, new, key, settings.max_history_bytes)

    async def beside_run(run: RunRow) -> Beside:
        beside, *_ = await beside_of(database, run.id, background=bool(new.background))
        return beside

    is_lost_with_its_caller = new.store is False and key is None
    if new.stream:
        with calls.open(caller).kept() as call:
            begun = await begin()
            row = begun.run
            seen = _where_it_goes_on(row) if begun.goes_on else FROM_THE_START
            renderer = ResponseRenderer(row, await beside_run(row), seen, created_again=begun.goes_on)
            hung_up = cancelling(canceller, row.id) if is_lost_with_its_caller else None
            follower = Follower(
                relay, call, row, seen.id, renderer, until_waiting=True, breaks_off=True, hung_up=hung_up
            )
            return Stream(follower, begun.headers)
    if new.background:
        begun = await begin()
        return JSONResponse(response_of(begun.run, await beside_run(begun.run)), 200, begun.headers)
    with calls.opened(caller):
        begun = await begin()
        row = begun.run
        gone = asyncio.create_task(cancel_when_gone(request, canceller, row.id)) if is_lost_with_its_caller else None
        try:
            if row.status != RunStatus.WAITING:
                seconds = (row.deadline_at - now()).total_seconds() + GRACE_SECONDS
                await ended(relay, row, seconds, or_waits=True)
                row = await owned_run(database, caller, row.id)
        finally:
            if gone is not None:
                gone.cancel()
    if row.status == RunStatus.FAILED:
        raise failed(row)
    if row.status not in TERMINAL and row.status != RunStatus.WAITING:
        raise unavailable(f"The run has not ended while this process could wait for it: read {response_id(row.id)}.")
    return JSONResponse(response_of(row, await beside_run(row)), 200, begun.headers)


@router.get("/{response}")
async def read(
    response: str,
    database: Database,
    relay: RunRelay,
    event_log: RunLog,
    calls: CallLimits,
    caller: Caller,
    stream: bool = False,  # noqa: FBT001, FBT002  (a query parameter)
    starting_after: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
    include_obfuscation: bool | None = None,  # noqa: FBT001  (a query parameter)
) -> Response:
    """Show a response, or stream it: from its beginning, or after an event."""
    del include_obfuscation
    row = await _owned(database, caller, response)
    beside, *_ = await beside_of(database, row.id)
    if not stream:
        if starting_after is not None:
            raise invalid("?starting_after", "starting_after_without_stream", "starting_after is for a stream")
        return JSONResponse(response_of(row, beside))
    seen = FROM_THE_START if starting_after is None else Place.of(starting_after)
    if seen != FROM_THE_START and starting_after:
        possible(row, seen.id)
    with calls.open(caller).kept() as call:
        sent = await _sent(event_log, row, seen)
        renderer = ResponseRenderer(row, beside, seen, sent)
        return Stream(Follower(relay, call, row, seen.cursor, renderer, until_waiting=True, breaks_off=True), {})


@router.post("/{response}/cancel")
async def cancel(
    response: str, database: Database, relay: RunRelay, canceller: Cancel, calls: CallLimits, caller: Caller
) -> Response:
    """Cancel a response, and show it; one that has ended stays as it is."""
    row = await _owned(database, caller, response)
    if row.status not in TERMINAL:
        try:
            with calls.opened(caller):
                following = asyncio.create_task(ended(relay, row, CANCEL_SECONDS))
                if await canceller.cancel(row.id):
                    following.cancel()
                else:
                    await following
        except Refused:  # No more of the caller's calls may wait.
            await canceller.cancel(row.id)
        row = await owned_run(database, caller, row.id)
    beside, *_ = await beside_of(database, row.id)
    return JSONResponse(response_of(row, beside))


@router.delete("/{response}")
async def delete(response: str, database: Database, caller: Caller) -> dict[str, Any]:
    """Delete a response that has ended, with its query: they leave their conversation, too."""
    row = await _owned(database, caller, response)
    async with database.begin() as connection:
        deleted = await connection.scalar(_DELETE, {"id": row.id})
    if deleted is None:
        raise Refused(
            409, "The response has not ended, or a webhook is still to tell of it.", code="response_unfinished"
        )
    return {"id": response, "object": "response", "deleted": True}


@router.get("/{response}/input_items")
async def input_items(
    response: str,
    database: Database,
    caller: Caller,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_ITEMS)] = 20,
) -> dict[str, Any]:
    """List what a response was asked with: what its caller's conversation held, and the query."""
    row = await _owned(database, caller, response)
    _, said, attached = await beside_of(database, row.id)
    items = [
        _input_item(f"{MESSAGE}{row.id.hex}_{number}", each["role"], each["content"])
        for number, each in enumerate(said)
        if each["role"] != "instructions"
    ]
    items.append(_input_item(MESSAGE + row.user_message_id.hex, "user", row.query, parts_of(attached)))
    return page_of(items if order == "asc" else items[::-1], after, limit)


def page_of(items: Sequence[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """Show a part of a list.

    Raises:
        Refused: 422, there is no item of that id.
    """
    first = 0
    if after is not None:
        first = next((number for number, item in enumerate(items, 1) if item["id"] == after), 0)
        if not first:
            raise invalid("?after", "unknown_item", "No such item")
    shown = items[first : first + limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": first + limit < len(items),
    }


def _input_item(item_id: str, role: str, text: str, files: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    content: dict[str, Any] = {"type": kind, "text": text}
    if role == "assistant":
        content["annotations"] = []
    return {"id": item_id, "type": "message", "role": role, "status": "completed", "content": [content, *files]}


async def _owned(database: AsyncEngine, caller: Owner, response: str) -> RunRow:
    try:
        return await owned_run(database, caller, run_of(response))
    except NotFound:
        raise NotFound("response") from None


async def _ask(
    submitter: Submitter, database: AsyncEngine, caller: Owner, new: NewResponse, key: Key | None, most_bytes: int
) -> _Begun:
    query, history = query_of(new.input)
    if new.instructions:
        history.insert(0, {"role": "instructions", "content": new.instructions})
    check_size("/input", history, most_bytes)
    metadata: dict[str, JsonValue] = dict(new.metadata or {})
    with in_their_places(files_of(new.input), "/input") as attachments:
        asked = NewQuery(agent_type=new.model, query=query, metadata=metadata, attachments=attachments)
        return await _ask_in_its_thread(submitter, database, caller, new, asked, key, history)


async def _ask_in_its_thread(
    submitter: Submitter,
    database: AsyncEngine,
    caller: Owner,
    new: NewResponse,
    asked: NewQuery,
    key: Key | None,
    history: Sequence[Said],
) -> _Begun:
    if new.conversation is not None:
        name = new.conversation if isinstance(new.conversation, str) else new.conversation.id
        thread_id = thread_of(name)
        await enter(database, caller, thread_id, new.model)
        return _begun(await submitter.ask(caller, _within(asked, thread_id), key, history))
    previous = None
    if new.previous_response_id is not None:
        previous = await _previous(database, caller, new)
        try:
            within = _within(asked, previous.thread_id)
            return _begun(await submitter.ask(caller, within, key, history, after_run=previous.id))
        except NotLast:
            pass
    if new.store is False and previous is None:
        return _begun(await submitter.ask(caller, asked, key, history))
    if previous is None:
        thread_id = await new_thread(database, caller, new.model, {})
    else:
        thread_id = await fork_after(database, caller, previous)
    return await _ask_in_new(submitter, database, caller, _within(asked, thread_id), thread_id, key, history)


async def _ask_in_new(
    submitter: Submitter,
    database: AsyncEngine,
    caller: Owner,
    asked: NewQuery,
    thread_id: UUID,
    key: Key | None,
    history: Sequence[Said],
) -> _Begun:
    """Ask in a thread that was made for it; it is removed where the query is refused, or was asked before."""
    try:
        begun = _begun(await submitter.ask(caller, asked, key, history))
    except BaseException:
        await discard(database, thread_id)
        raise
    if begun.headers.get(REPLAYED_HEADER):
        await discard(database, thread_id)
    return begun


def _within(asked: NewQuery, thread_id: UUID | None) -> NewQuery:
    return asked.model_copy(update={"thread_id": thread_id, "agent_type": None})


def _begun(asked: Asked) -> _Begun:
    return _Begun(asked.run, asked.headers)


async def _previous(database: AsyncEngine, caller: Owner, new: NewResponse) -> RunRow:
    """Read the response that is gone on from.

    Raises:
        NotFound: there is no such response.
        Refused: 422, it cannot be gone on from.
    """
    previous = await _owned(database, caller, new.previous_response_id or "")
    pointer = "/previous_response_id"
    if previous.agent_type != new.model:
        raise invalid("/model", "other_model", f"That response is of {previous.agent_type}")
    if previous.status == RunStatus.WAITING and not outputs_of(new.input):
        calls = calls_of(open_requests(previous)) or []
        names = ", ".join(call["call_id"] for call in calls) or "POST /api/v1/runs/{id}/answers"
        raise invalid("/input", "no_tool_output", f"That response waits for the results of its calls: {names}")
    if previous.thread_id is None:
        raise invalid(pointer, "not_stored", "That response was made with store=false, or is a chat completion")
    return previous


async def _answer(
    answerer: Answerer, database: AsyncEngine, caller: Owner, new: NewResponse, outputs: Sequence[InputItem]
) -> _Begun:
    """Give a run that waits the results of its calls."""
    if new.previous_response_id is None:
        raise invalid("/previous_response_id", "missing", "Results of calls need the response that made the calls")
    if new.instructions:
        raise invalid("/instructions", "unsupported_value", "A response that goes on keeps its instructions")
    run = await _owned(database, caller, new.previous_response_id)
    if run.agent_type != new.model:
        raise invalid("/model", "other_model", f"That response is of {run.agent_type}")
    requests = {request.request_id: request for request in requests_of(run.requests)}
    answers: list[GivenAnswer] = []
    for number, output in enumerate(outputs):
        request = requests.get(output.call_id or "")
        if request is None:
            raise invalid(f"/input/{number}/call_id", "unknown_call", "That response made no such call")
        value = _value(request, output.output or "", f"/input/{number}/output")
        answers.append(GivenAnswer(request_id=request.request_id, result=value))
    await answerer.answer(caller, run.id, answers)
    return _Begun(await owned_run(database, caller, run.id), {}, goes_on=True)


def _value(request: RunRequest, output: str, pointer: str) -> JsonValue:
    """Read the result of a call: a text, or where its schema wants something else, the JSON that the text is.

    Raises:
        Refused: 422, it does not fit the schema.
    """
    schema = request.value_schema
    if schema is None:
        return output
    try:
        check_value(output, schema, pointer, "the tool's")
    except Refused as refused:
        try:
            value = from_json(output)
        except ValueError:
            raise refused from None
        check_value(value, schema, pointer, "the tool's")
        return value
    return output


def _where_it_goes_on(run: RunRow) -> Place:
    """Say from where the stream of a run is of interest that was given results."""
    still_waits = run.status == RunStatus.WAITING
    return Place(Id(run.attempt, run.last_entry - still_waits), -1, LIFECYCLE)


async def _sent(event_log: EventLog, run: RunRow, seen: Place) -> str | None:
    """Work out the text that a reader has who has seen an event; None where nobody knows, or there is none."""
    if seen.stage != DELTA or seen.item < 0:
        return None
    if run.status in TERMINAL and (seen.id.attempt > run.attempt or seen.id >= Id(run.attempt, run.last_entry)):
        return final_text(run)
    entries = []
    with skip_if_redis_away(log, "responses.redis_away run_id=%s", run.id):
        entries = await event_log.read(run.id)
    return text_at(entries, seen.id)
