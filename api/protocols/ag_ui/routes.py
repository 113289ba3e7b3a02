"""Routes: an agent, as a client of AG-UI runs it."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Response
from pydantic_core import to_json
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
from agent_relay.api.protocols.ag_ui.renderer import Called, EventRenderer
from agent_relay.api.protocols.ag_ui.requests import (
    NewRun,
    answers_in,
    asked_for,
    check_carried,
    instructions_in,
    metadata_in,
    of_their_places,
    query_in,
    wrong_role,
)
from agent_relay.api.protocols.ag_ui.threads import (
    ClientThread,
    Waited,
    check_waits_for_nothing,
    find_thread,
    run_of,
    run_that_waited,
)
from agent_relay.api.queries import owned_run
from agent_relay.api.requests.idempotency import REPLAYED
from agent_relay.api.requests.identity import Caller, Owner
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.routes.agent import cancelling
from agent_relay.api.schemas import AgentType, NewQuery
from agent_relay.api.streaming.response import Follower, Stream
from agent_relay.api.submission import Asked, OwnIds, Submitter
from agent_relay.shared.errors import KeyReused
from agent_relay.shared.event_log import BEFORE_ALL
from agent_relay.shared.idempotency import Key
from agent_relay.shared.schemas import metadata_of, requests_of
from agent_relay.shared.settings import AGENT_TYPE, Settings

PATH = "/ag-ui"
MOST_VALUES = 20_000
"""Values in a body: a client sends the whole conversation with each run."""


class _Route(StrictRoute):
    """A route that takes whole conversations."""

    most_values = MOST_VALUES


router = APIRouter(prefix=PATH, route_class=_Route, include_in_schema=False)
"""Not in the OpenAPI document of this service: the contract is AG-UI's."""


@router.post("/{agent_type}")
async def run_agent(
    agent_type: Annotated[AgentType, Path(pattern=f"^{AGENT_TYPE.pattern}$")],
    asked: NewRun,
    submitter: Submit,
    answerer: TakeAnswers,
    database: Database,
    relay: RunRelay,
    canceller: Cancel,
    calls: CallLimits,
    settings: ServiceSettings,
    url_of: UrlOf,
    caller: Caller,
    on_disconnect: Literal["continue", "cancel"] = "continue",
) -> Response:
    """Ask what the last message says, or give the answers that a run waits for, and stream what comes.

    The id of the client's run is its idempotency key: sent again, it is answered with the same run.
    """
    thread = await find_thread(database, caller, agent_type, asked.thread_id)
    check_carried(asked, text_output=thread.text_output)
    with calls.open(caller).kept() as call:
        cursor, after = BEFORE_ALL, 0
        if asked.answers:
            waited = await _answered(database, answerer, caller, thread, asked)
            found, cursor, after = Asked(waited.run), waited.pause, waited.attempt
        else:
            found = await _submitted(database, submitter, caller, thread, agent_type, asked, settings)
        run = found.run
        called = Called(asked.thread_id, asked.run_id, asked.messages, asked.parent_run_id, after)
        hung_up = cancelling(canceller, run.id) if on_disconnect == "cancel" else None
        follower = Follower(
            relay,
            call,
            run,
            cursor,
            EventRenderer(run, called),
            until_waiting=True,
            breaks_off=True,  # A client takes a stream that just ends for a complete one.
            hung_up=hung_up,
        )
        return Stream(follower, {**found.headers, "Content-Location": url_of("runs", run.id)})


async def _submitted(
    database: AsyncEngine,
    submitter: Submitter,
    caller: Owner,
    thread: ClientThread,
    agent_type: str,
    asked: NewRun,
    settings: Settings,
) -> Asked:
    """Ask what the last message says, or not again.

    Raises:
        Refused: 422, it says what is not taken, or the client's run has asked something else before; 409, a run of the
            thread waits.
    """
    wanted, metadata = query_in(asked), metadata_in(asked)
    query = wanted.query
    before = await run_of(database, caller, thread, asked.run_id) if thread.is_there else None
    if before is not None:
        same = before.query == query and metadata_of(before.metadata) == metadata
        if not same or not await are_attached(database, before.id, wanted.files):
            raise _reused()
        return Asked(before, REPLAYED)
    if asked.last_place < len(asked.messages) - 1:  # The query has its answer: this is another run.
        raise wrong_role(len(asked.messages) - 1)
    if thread.is_there:
        await check_waits_for_nothing(database, thread)
    message_id = thread.message_id(asked.run_id)
    key = Key(
        tenant=caller.tenant,
        user_id=caller.user_id,
        route=f"/api/v1{PATH}",
        key=str(message_id),
        body_hash=hashlib.sha256(to_json([query, metadata, *(each.attachment for each in wanted.files)])).digest(),
        kept_seconds=settings.idempotency_retention_hours * 3600,
    )
    instructions = instructions_in(asked, settings.max_history_bytes)
    ids = OwnIds(message_id, None if thread.is_there else agent_type)
    try:
        with in_their_places(wanted.files, wanted.pointer) as attachments:
            new = NewQuery(thread_id=thread.id, query=query, metadata=metadata, attachments=attachments)
            return await submitter.ask(caller, new, key, instructions, ids=ids)
    except KeyReused:
        raise _reused() from None


def _reused() -> Refused:
    return invalid(
        "/runId", "run_id_reused", "This run has asked something else before: give each run an id of its own"
    )


async def _answered(
    database: AsyncEngine, answerer: Answerer, caller: Owner, thread: ClientThread, asked: NewRun
) -> Waited:
    """Give the answers, or find that they were given before; returns the run, and where it waited for them.

    Raises:
        Refused: 422, they answer nothing that was asked for, or not all, or wrongly.
        NotWaiting: the run waits for nothing.
        AlreadyAnswered: another answer was given before.
    """
    waited = await run_that_waited(database, caller, thread, asked_for(asked)) if thread.is_there else None
    if waited is None:
        pointer = "/resume/0/interruptId" if asked.resume else f"/messages/{asked.last_place}/toolCallId"
        raise invalid(pointer, "unknown_request", "No run of this thread has asked for that")
    requests = [request for request in requests_of(waited.run.requests) if request.attempt == waited.attempt]
    answers = answers_in(asked, requests)
    if waited.is_over or not answers.given:
        return waited
    try:
        await answerer.answer(caller, waited.run.id, answers.given)
    except Refused as refused:
        raise of_their_places(refused, answers) from None
    return Waited(await owned_run(database, caller, waited.run.id), waited.attempt, waited.pause, waited.is_over)
