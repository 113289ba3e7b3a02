"""Routes: chats of the AI SDK."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic_core import to_json
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.answering import Answerer
from agent_relay.api.attachments import are_attached, in_their_places
from agent_relay.api.dependencies import (
    CallLimits,
    Cancel,
    Database,
    RunRelay,
    ServiceSettings,
    Submit,
    TakeAnswers,
    UrlOf,
)
from agent_relay.api.problems import Refused, invalid
from agent_relay.api.protocols.ai_sdk.chats import Chat, find_chat, run_of_answer, run_of_query, unfinished_run
from agent_relay.api.protocols.ai_sdk.messages import UiMessage, last_messages
from agent_relay.api.protocols.ai_sdk.renderer import HEADERS, ChunkRenderer, Known
from agent_relay.api.protocols.ai_sdk.requests import (
    CHAT_ID,
    LONGEST_ID,
    Answers,
    ChatRequest,
    Wanted,
    answers_in,
    known_in,
    query_in,
)
from agent_relay.api.queries import owned_run
from agent_relay.api.requests.idempotency import REPLAYED, IdempotencyKey
from agent_relay.api.requests.identity import Caller, Owner
from agent_relay.api.requests.pagination import Limit
from agent_relay.api.requests.rate_limits import OpenCall
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.schemas import AgentType, NewQuery
from agent_relay.api.streaming.relay import Relay
from agent_relay.api.streaming.response import Follower, Stream
from agent_relay.api.submission import Asked, OwnIds, Submitter
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.errors import NotWaiting
from agent_relay.shared.event_log import BEFORE_ALL, Id
from agent_relay.shared.idempotency import Key
from agent_relay.shared.rows import RunRow
from agent_relay.shared.runs.accept import Strategy
from agent_relay.shared.schemas import requests_of
from agent_relay.shared.settings import AGENT_TYPE

PATH = "/ai-sdk/chat"
MOST_VALUES = 20_000
"""Values in a body: a client sends the whole conversation, unless it is told to send its last message only."""


class ChatRoute(StrictRoute):
    """A route that takes whole conversations."""

    most_values = MOST_VALUES


router = APIRouter(prefix=PATH, route_class=ChatRoute, include_in_schema=False)
"""Not in the OpenAPI document of this service: the contract is the AI SDK's."""

ChatId = Annotated[str, Path(max_length=LONGEST_ID, pattern=CHAT_ID)]


@router.post("")
async def send_chat(
    asked: ChatRequest,
    submitter: Submit,
    answerer: TakeAnswers,
    database: Database,
    relay: RunRelay,
    canceller: Cancel,
    calls: CallLimits,
    settings: ServiceSettings,
    url_of: UrlOf,
    caller: Caller,
    key: IdempotencyKey,
    agent_type: Annotated[
        AgentType | None,
        Query(pattern=f"^{AGENT_TYPE.pattern}$"),
    ] = None,
) -> Response:
    """Ask what the last message says, or give the answers that the run waits for, and stream the answer.

    The id of a user's message is its idempotency key: sent again, it asks nothing again, and is answered with the same
    run. An edited or regenerated message takes the place of the one before, with all after it.
    """
    chat = await find_chat(database, caller, asked.id)
    with calls.open(caller).kept() as call:
        if (number := asked.answering) is not None:
            run, cursor, known = await _answered(database, answerer, caller, chat, asked, number)
            found = Asked(run)
        else:
            agent = _agent(asked, agent_type, chat)
            wanted = query_in(asked, _paths_of_files(url_of))
            if key is None:
                key = _key(asked, wanted, chat, caller, agent, settings.idempotency_retention_hours * 3600)
            found = await _submitted(database, submitter, caller, chat, asked, wanted, agent, key)
            cursor, known = BEFORE_ALL, None
        run_id = found.run.id

        async def cancel() -> None:
            await canceller.cancel(run_id)

        hung_up = cancel if asked.on_disconnect == "cancel" else None
        return _stream(relay, call, url_of, found.run, cursor, known, hung_up, found.headers)


@router.get("/{chat}/stream")
async def resume_chat(
    chat: ChatId, database: Database, relay: RunRelay, calls: CallLimits, url_of: UrlOf, caller: Caller
) -> Response:
    """The stream, from its start, of the run that is under way or waits for answers."""
    run = await unfinished_run(database, caller, await find_chat(database, caller, chat))
    if run is None:
        return Response(status_code=204)
    with calls.open(caller).kept() as call:
        return _stream(relay, call, url_of, run)


@router.get("/{chat}/messages", response_model_exclude_unset=True)
async def list_chat_messages(
    chat: ChatId, database: Database, url_of: UrlOf, caller: Caller, limit: Limit = 100
) -> list[UiMessage]:
    """UI messages for the first paint of a page; a chat that has not begun has none.

    The answer that is being written is not among them: resume the stream for it.
    """
    found = await find_chat(database, caller, chat)
    if found.agent_type is None:
        return []
    return await last_messages(database, found.thread_id, limit, _paths_of_files(url_of))


def _stream(
    relay: Relay,
    call: OpenCall,
    url_of: Callable[[str, object], str],
    run: RunRow,
    cursor: Id = BEFORE_ALL,
    known: Known | None = None,
    hung_up: Callable[[], Awaitable[None]] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    renderer = ChunkRenderer(run, _paths_of_files(url_of), known)
    # A client takes a stream that just ends for a complete one.
    follower = Follower(relay, call, run, cursor, renderer, until_waiting=True, breaks_off=True, hung_up=hung_up)
    return Stream(follower, {**HEADERS, **(headers or {})})


def _paths_of_files(url_of: Callable[[str, object], str]) -> Callable[[object], str]:
    """Make paths of the content of files, for callers of this service."""
    return lambda file_id: f"{url_of('files', file_id)}/content"


def _agent(asked: ChatRequest, in_query: str | None, chat: Chat) -> str | None:
    """Say which agent a new chat begins with; None where the chat has begun.

    Raises:
        Refused: 422, none is named, two are, or another one than the chat has.
    """
    pointer = "/agent_type" if asked.agent_type is not None else "?agent_type"
    named = asked.agent_type or in_query
    if asked.agent_type is not None and in_query is not None and asked.agent_type != in_query:
        raise invalid("?agent_type", "other_agent", "The body names another agent")
    if chat.agent_type is None:
        if named is None:
            raise invalid("/agent_type", "missing", "A new chat needs it, here or in the query string")
        return named
    if named is not None and named != chat.agent_type:
        raise invalid(pointer, "other_agent", f"The agent of this chat is {chat.agent_type}: begin another chat")
    return None


def _key(
    asked: ChatRequest, wanted: Wanted, chat: Chat, caller: Owner, agent: str | None, kept_seconds: float
) -> Key | None:
    """Make the idempotency key of a new message of the user's; None where one that is there is replaced."""
    if asked.trigger == "regenerate-message" or asked.message_id is not None:
        return None
    files = [each.attachment for each in wanted.files]
    body = to_json([wanted.query, agent, asked.options, asked.metadata, *files])
    return Key(
        tenant=caller.tenant,
        user_id=caller.user_id,
        route=f"/api/v1{PATH}",
        key=str(chat.message_id(asked.last.id)),
        body_hash=hashlib.sha256(body).digest(),
        kept_seconds=kept_seconds,
    )


async def _submitted(
    database: AsyncEngine,
    submitter: Submitter,
    caller: Owner,
    chat: Chat,
    asked: ChatRequest,
    wanted: Wanted,
    agent: str | None,
    key: Key | None,
) -> Asked:
    """Ask what the last message says: anew, instead of what it said before, or not again.

    Raises:
        Refused: 422, the message says what is not taken, or was sent before and said something else.
    """
    query: str | None = wanted.query
    files, replace_from = wanted.files, None
    message_id = chat.message_id(asked.last.id)
    edits = asked.trigger == "submit-message" and asked.message_id is not None
    if edits and asked.message_id != asked.last.id:
        raise invalid("/messageId", "unknown_message", "It must be the id of the last message")
    before = None if agent is not None else await run_of_query(database, caller, chat, asked.last.id)
    if before is not None:
        if asked.trigger == "submit-message" and not edits:
            if before.query != query or not await are_attached(database, before.id, files):
                message = (
                    "This message was sent before, and said something else: to edit it, give its id as messageId, too"
                )
                raise invalid(f"{asked.pointer}/id", "message_id_reused", message)
            return Asked(before, REPLAYED)
        message_id = replace_from = before.user_message_id
        if before.query == query and await are_attached(database, before.id, files):
            query, files = None, ()  # The same again: its files are there.
    new = NewQuery(
        thread_id=chat.thread_id,
        query=query,
        replace_from=replace_from,
        multitask_strategy=None if asked.multitask_strategy is None else Strategy(asked.multitask_strategy),
        metadata=asked.metadata,
        options=asked.options,
    )
    try:
        with in_their_places(files, f"{asked.pointer}/parts") as attachments:
            new = new.model_copy(update={"attachments": attachments})
            return await submitter.ask(caller, new, key, ids=OwnIds(message_id, agent))
    except IntegrityError:  # Another call has just stored a message of this id.
        run = await run_of_query(database, caller, chat, asked.last.id)
        if run is None:
            raise
        return Asked(run, REPLAYED)


async def _answered(
    database: AsyncEngine, answerer: Answerer, caller: Owner, chat: Chat, asked: ChatRequest, number: int
) -> tuple[RunRow, Id, Known]:
    """Give the answers of a message; returns the run, the event to go on after, and what the reader knows.

    Raises:
        Refused: 422, the message is not of this chat, or answers nothing, or something wrongly.
        NotWaiting: the run waits for nothing.
        AlreadyAnswered: another answer was given before.
    """
    message, pointer = asked.messages[number], f"/messages/{number}"
    waited = await run_of_answer(database, caller, chat, message.id)
    if waited is None:
        raise invalid(f"{pointer}/id", "unknown_message", "This chat has no such answer")
    run = waited.run
    requests = [request for request in requests_of(run.requests) if request.attempt == waited.attempt]
    answers = answers_in(message, requests)
    if waited.pause is None or not answers.given:
        if run.status != RunStatus.WAITING:
            raise NotWaiting(run.status)
        raise invalid(f"{pointer}/parts", "nothing_answered", "No part answers what the run waits for")
    try:
        await answerer.answer(caller, run.id, answers.given)
    except Refused as refused:
        raise _of_parts(refused, pointer, answers) from None
    return await owned_run(database, caller, run.id), waited.pause, known_in(message, answers)


def _of_parts(refused: Refused, pointer: str, answers: Answers) -> Refused:
    """Say of the parts of a message what was said of the answers in them."""
    for error in refused.errors:
        _, _, number, *rest = error.pointer.split("/")
        error.pointer = "/".join([f"{pointer}/parts/{answers.parts[int(number)]}", *rest])
    return refused
