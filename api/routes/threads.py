"""Routes: threads, the conversations of a user with an agent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import JsonValue
from pydantic_core import to_json
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.dependencies import CallLimits, Cancel, Database, RunRelay, UrlOf
from agent_relay.api.openapi import THREAD_STREAM
from agent_relay.api.options import check_options
from agent_relay.api.problems import invalid, pointer_step, responses
from agent_relay.api.queries import Place, read_owned, read_page
from agent_relay.api.requests.idempotency import REPLAYED, IdempotencyKey, once
from agent_relay.api.requests.identity import Caller, Owner
from agent_relay.api.requests.pagination import Bounded, Cursor, Limit, Page, Rows, bounded, read_bounded
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.schemas import (
    AgentType,
    Fork,
    Message,
    MessageAttachment,
    MessageWithSteps,
    NewThread,
    Thread,
    ThreadChanges,
    ThreadId,
    ThreadWithMessages,
)
from agent_relay.api.steps import SIZE_OF_STEPS, steps_of_runs
from agent_relay.api.streaming.follow import Deltas, LastSeenInThread, follow_thread
from agent_relay.shared.attachments import attached_of
from agent_relay.shared.clock import new_id
from agent_relay.shared.database import PLACE
from agent_relay.shared.database.tables import IS_UNFINISHED
from agent_relay.shared.database.typed_rows import columns, read_one
from agent_relay.shared.errors import NotFound, UnknownAgent
from agent_relay.shared.idempotency import Key, Repeated, keep
from agent_relay.shared.runs import fork
from agent_relay.shared.runs.cancel import supersede
from agent_relay.shared.schemas import metadata_of
from agent_relay.shared.settings import AGENT_TYPE

router = APIRouter(prefix="/threads", tags=["threads"], route_class=StrictRoute)

LAST_MESSAGES = 100


@dataclass(frozen=True, slots=True)
class ThreadRow:
    """A thread as it is shown."""

    id: UUID
    user_id: UUID
    agent_type: str
    title: str | None
    created_at: datetime
    updated_at: datetime
    metadata: JsonValue
    options: JsonValue
    last_message_at: datetime | None
    unfinished_runs: int


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A message as it is shown."""

    id: UUID
    role: Literal["user", "assistant", "system"]
    content: str
    attachments: JsonValue
    created_at: datetime
    metadata: JsonValue
    position: int
    place: int


@dataclass(frozen=True, slots=True)
class MessageOfRun(MessageRow):
    """A message, and the run whose steps are shown with it, if any."""

    steps_of: UUID | None


_CREATE = text(f"""
    INSERT INTO threads (id, tenant, user_id, agent_type, title, metadata, options)
    SELECT :id, :tenant, :user_id, agent_type, :title, CAST(:metadata AS json), CAST(:options AS jsonb)
    FROM agents WHERE agent_type = :agent_type
    RETURNING {columns(ThreadRow, last_message_at="CAST(NULL AS timestamptz)", unfinished_runs="0")}
""")  # noqa: S608  (constants)

_SELECT_PAGE = f"""
    SELECT * FROM threads
    WHERE tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
      AND (created_at, id) < {PLACE}
      AND (CAST(:threads AS uuid[]) IS NULL OR id = ANY(CAST(:threads AS uuid[])))
      AND (CAST(:agent_type AS text) IS NULL OR agent_type = :agent_type)
      AND (CAST(:has_unfinished AS boolean) IS NULL OR :has_unfinished = EXISTS (
               SELECT FROM runs WHERE thread_id = threads.id AND {IS_UNFINISHED}))
      AND (CAST(:metadata AS json) IS NULL OR NOT EXISTS (
               SELECT FROM json_each_text(CAST(:metadata AS json)) AS wanted
               WHERE threads.metadata ->> wanted.key IS DISTINCT FROM wanted.value))
      AND (CAST(:q AS text) IS NULL OR strpos(lower(title), lower(:q)) > 0 OR EXISTS (
               SELECT FROM messages WHERE thread_id = threads.id AND strpos(lower(content), lower(:q)) > 0))
    ORDER BY created_at DESC, id DESC LIMIT :limit
"""  # noqa: S608  (a constant)

_SHOWN = columns(
    ThreadRow,
    "shown",
    last_message_at="""(
        SELECT created_at FROM messages WHERE thread_id = shown.id ORDER BY position DESC, place DESC LIMIT 1
    )""",
    unfinished_runs=f"""(
        SELECT count(*) FROM runs WHERE thread_id = shown.id AND {IS_UNFINISHED}
    )""",  # noqa: S608  (a constant)
)

_ORDER = "created_at DESC, id DESC"
_SIZE_OF_THREAD = "octet_length(CAST(metadata AS text)) + coalesce(octet_length(CAST(options AS text)), 0)"

_PAGE = text(f"""
    SELECT {_SHOWN}, {columns(Bounded)}
    FROM ({bounded(_SELECT_PAGE, _SIZE_OF_THREAD, _ORDER)}) AS shown ORDER BY {_ORDER}
""")  # noqa: S608  (constants)

_OWNED = text(f"""
    SELECT {_SHOWN} FROM threads AS shown
    WHERE id = :id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
""")  # noqa: S608  (a constant)

_CHANGE = text("""
    UPDATE threads
    SET title = CASE WHEN :changes_title THEN :title ELSE title END,
        metadata = coalesce(CAST(:metadata AS json), metadata),
        options = CASE WHEN :changes_options THEN CAST(:options AS jsonb) ELSE options END,
        updated_at = now()
    WHERE id = :id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
""")

_SIZE = "(octet_length(content) + coalesce(octet_length(CAST(attachments AS text)), 0))"

_SELECT_LAST = f"""
    SELECT {columns(MessageRow)} FROM messages WHERE thread_id = :id
    ORDER BY position DESC, place DESC LIMIT {LAST_MESSAGES}
"""  # noqa: S608  (constants)

_LAST_MESSAGES = text(f"""
    SELECT * FROM ({bounded(_SELECT_LAST, _SIZE, "position DESC, place DESC")}) AS last ORDER BY position, place
""")  # noqa: S608  (constants)

_BEARS_STEPS = """
    place = 0 AND (role = 'assistant' OR NOT EXISTS (
        SELECT FROM messages AS answer WHERE answer.run_id = messages.run_id AND answer.role = 'assistant'))
"""
"""Of each run one message: the answer, or without one the query."""


def _page_of_messages(*, with_steps: bool) -> TextClause:
    steps_of = f"CASE WHEN {_BEARS_STEPS} THEN run_id END" if with_steps else "CAST(NULL AS uuid)"
    select = f"""
        SELECT {columns(MessageOfRun, "messages", steps_of=steps_of)} FROM messages
        WHERE thread_id = :id
          AND (position, place) > (coalesce(CAST(:position AS bigint), -1), coalesce(CAST(:place AS int), 0))
        ORDER BY position, place LIMIT :limit
    """  # noqa: S608  (constants)
    return text(bounded(select, f"({_SIZE} + {SIZE_OF_STEPS})" if with_steps else _SIZE, "position, place"))


_MESSAGES = {with_steps: _page_of_messages(with_steps=with_steps) for with_steps in (False, True)}

_DELETE = text("""
    UPDATE threads SET deleted_at = now()
    WHERE id = :id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL RETURNING id
""")


_METADATA = "metadata."


async def _metadata_filter(
    request: Request, _: Annotated[str | None, Query(alias=_METADATA, include_in_schema=False)] = None
) -> dict[str, str]:
    given = {name: value for name, value in request.query_params.items() if name.startswith(_METADATA)}
    for name, value in given.items():
        if "\0" in name + value:
            raise invalid(f"?{pointer_step(name)}", "nul_character", "Text may not hold U+0000")
    return {name.removeprefix(_METADATA): value for name, value in given.items()}


MetadataFilter = Annotated[dict[str, str], Depends(_metadata_filter)]
"""The conditions `metadata.<key>=<value>` of the query string."""


@router.post(
    "",
    status_code=201,
    summary="Begin a thread",
    response_description="The thread; `Location` is its address.",
    responses=responses(404, 409, 413, 415),
)
async def create_thread(
    new: NewThread, database: Database, url_of: UrlOf, caller: Caller, key: IdempotencyKey, response: Response
) -> Thread:
    """Begin a conversation with an agent."""
    try:
        row = await once(lambda: _create(database, caller, new, key))
    except Repeated as repeated:
        row = await owned_thread(database, caller, repeated.created)
        response.headers.update(REPLAYED)
    response.headers["Location"] = url_of("threads", row.id)
    return thread_of(row)


@router.get("", summary="List your threads", response_description="A page of threads.", responses=responses())
async def list_threads(
    database: Database,
    caller: Caller,
    cursor: Cursor,
    metadata: MetadataFilter,
    agent_type: Annotated[
        AgentType | None, Query(pattern=f"^{AGENT_TYPE.pattern}$", description="Only those with this agent.")
    ] = None,
    q: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=200,
            pattern=r"^[^\x00]*$",
            description="Only those with this text in the title or in a message.",
        ),
    ] = None,
    has_unfinished: Annotated[
        bool | None, Query(description="Only those with a run that is queued, running or waiting; or without one.")
    ] = None,
    limit: Limit = 20,
) -> Page[Thread]:
    """The user's threads, newest first. `metadata.<key>=<value>` selects those whose metadata has that value."""
    at, thread_id = cursor.read(datetime.fromisoformat, UUID)
    found = await owned_threads(
        database,
        caller,
        before=(at, thread_id),
        limit=limit,
        agent_type=agent_type,
        q=q,
        has_unfinished=has_unfinished,
        metadata=metadata,
    )
    return cursor.page(found, limit, thread_of, lambda row: [row.created_at.isoformat(), row.id])


@router.get(
    "/{thread_id}",
    summary="Read a thread",
    response_description="The thread.",
    response_model_exclude_unset=True,
    responses=responses(404),
)
async def read_thread(thread_id: ThreadId, database: Database, caller: Caller) -> ThreadWithMessages:
    """The thread and its last 100 messages, fewer where they are large, in the order of the conversation."""
    row = await owned_thread(database, caller, thread_id)
    async with database.connect() as connection:
        messages = read_bounded(await connection.execute(_LAST_MESSAGES, {"id": thread_id}), MessageRow)
    return ThreadWithMessages(
        **thread_of(row).model_dump(), messages=[message_of(message) for message in messages.rows]
    )


@router.get(
    "/{thread_id}/messages",
    summary="Page through a thread's messages",
    response_description="A page of messages.",
    response_model_exclude_unset=True,
    responses=responses(404),
)
async def list_messages(
    thread_id: ThreadId,
    database: Database,
    caller: Caller,
    cursor: Cursor,
    include: Annotated[
        Literal["steps"] | None, Query(description="`steps`: with what each run did, see `GET /runs/{id}/steps`.")
    ] = None,
    limit: Limit = 20,
) -> Page[MessageWithSteps]:
    """All messages, in the order of the conversation."""
    (last,) = cursor.read(str)
    position, _, place = (last or "").partition(".")
    await owned_thread(database, caller, thread_id)
    after = (int(position), int(place or 0)) if position else None
    found = await page_of_messages(database, thread_id, after, limit, with_steps=include is not None)
    run_ids = [row.steps_of for row in found.rows[:limit] if row.steps_of is not None]
    steps, have_more = await steps_of_runs(database, run_ids)

    def shown(row: MessageOfRun) -> MessageWithSteps:
        message = MessageWithSteps(**message_of(row).model_dump())
        if include is None:
            return message
        of_run = {} if row.steps_of is None else {"more_steps": row.steps_of in have_more}
        return message.model_copy(update={"steps": steps.get(row.steps_of) if row.steps_of else None, **of_run})

    return cursor.page(found, limit, shown, lambda row: [f"{row.position}.{row.place}"])


@router.get(
    "/{thread_id}/stream",
    summary="Follow a thread",
    response_class=Response,
    responses={**responses(404, 406, 409), 200: THREAD_STREAM},
)
async def stream_thread(
    thread_id: ThreadId,
    database: Database,
    relay: RunRelay,
    calls: CallLimits,
    caller: Caller,
    cursor: LastSeenInThread,
    from_run: Annotated[
        UUID | None,
        Query(description="Begin with this run, instead of the first; with a cursor, it has no effect."),
    ] = None,
    deltas: Deltas = False,  # noqa: FBT002  (a query parameter)
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """The events of all its runs, one run after the other, whoever asked; it stays open until the thread is deleted."""
    await owned_thread(database, caller, thread_id)
    with calls.open(caller).kept() as call:
        return await follow_thread(
            relay, call, thread_id, accept=accept, cursor=cursor, from_run=from_run, deltas=deltas
        )


@router.patch(
    "/{thread_id}",
    summary="Change a thread",
    response_description="The thread, as it is now.",
    responses=responses(404, 413, 415),
)
async def change_thread(thread_id: ThreadId, changes: ThreadChanges, database: Database, caller: Caller) -> Thread:
    """Change its title, its metadata or its options. A field that is left out stays as it is."""
    given = changes.model_fields_set
    values = {
        "id": thread_id,
        "tenant": caller.tenant,
        "user_id": caller.user_id,
        "changes_title": "title" in given,
        "title": changes.title,
        "metadata": to_json(changes.metadata).decode() if "metadata" in given else None,
        "changes_options": "options" in given,
        "options": _json(changes.options),
    }
    if changes.options is not None:
        await check_options(database, caller, changes.options, thread_id=thread_id)
    async with database.begin() as connection:
        await connection.execute(_CHANGE, values)
    return thread_of(await owned_thread(database, caller, thread_id))


@router.post(
    "/{thread_id}/fork",
    status_code=201,
    summary="Fork a thread",
    response_description="The new thread; `Location` is its address.",
    responses=responses(404, 409, 413, 415),
)
async def fork_thread(
    thread_id: ThreadId,
    how: Fork,
    database: Database,
    url_of: UrlOf,
    caller: Caller,
    key: IdempotencyKey,
    response: Response,
) -> Thread:
    """Begin a thread with copies of another's messages, up to one of them, and with the model's history there."""
    asked = fork.Fork(
        tenant=caller.tenant,
        user_id=caller.user_id,
        thread_id=thread_id,
        through_message_id=how.through_message_id,
        title=how.title,
        allowed_agents=caller.allowed_agents,
    )
    try:
        new_thread_id = await once(lambda: _fork(database, asked, key))
    except Repeated as repeated:
        new_thread_id = repeated.created
        response.headers.update(REPLAYED)
    row = await owned_thread(database, caller, new_thread_id)
    response.headers["Location"] = url_of("threads", row.id)
    return thread_of(row)


@router.delete(
    "/{thread_id}",
    status_code=204,
    summary="Delete a thread",
    response_description="It is gone.",
    responses=responses(404),
)
async def delete_thread(thread_id: ThreadId, database: Database, canceller: Cancel, caller: Caller) -> None:
    """Gone at once for every reader. Its unfinished runs are cancelled, and open streams end properly."""
    owner = {"id": thread_id, "tenant": caller.tenant, "user_id": caller.user_id}
    async with database.begin() as connection:
        if await connection.scalar(_DELETE, owner) is None:
            raise NotFound("thread")
        cancellations = await supersede(connection, thread_id, roll_back=False, also_later=True)
    await canceller.announce(cancellations)


async def owned_threads(
    database: AsyncEngine,
    caller: Owner,
    *,
    before: Place,
    limit: int,
    agent_type: str | None = None,
    q: str | None = None,
    has_unfinished: bool | None = None,
    metadata: dict[str, str] | None = None,
) -> Rows[ThreadRow]:
    """Read the caller's threads, newest first, from a place on."""
    return await read_page(
        database,
        caller,
        _PAGE,
        ThreadRow,
        before=before,
        limit=limit,
        threads=caller.threads,
        agent_type=agent_type,
        q=q,
        has_unfinished=has_unfinished,
        metadata=to_json(metadata).decode() if metadata else None,
    )


async def page_of_messages(
    database: AsyncEngine, thread_id: UUID, after: tuple[int, int] | None, limit: int, *, with_steps: bool = False
) -> Rows[MessageOfRun]:
    """Read the messages of a thread in order, after a position and a place there; whose it is was looked at before."""
    position, place = after or (None, None)
    values = {"id": thread_id, "position": position, "place": place, "limit": limit + 1}
    async with database.connect() as connection:
        return read_bounded(await connection.execute(_MESSAGES[with_steps], values), MessageOfRun)


async def owned_thread(database: AsyncEngine, caller: Owner, thread_id: UUID) -> ThreadRow:
    """Read a thread.

    Raises:
        NotFound: it is not there, or not this caller's.
    """
    row = await read_owned(database, caller, _OWNED, ThreadRow, thread_id)
    if row is None:
        raise NotFound("thread")
    return row


def _json(options: dict[str, Any] | None) -> str | None:
    return None if options is None else to_json(options).decode()


async def _create(database: AsyncEngine, caller: Owner, new: NewThread, key: Key | None) -> ThreadRow:
    if new.options is not None:
        await check_options(database, caller, new.options, agent_type=new.agent_type)
    async with database.begin() as connection:
        if not caller.may_ask(new.agent_type):
            raise UnknownAgent(new.agent_type, caller.allowed_agents)
        thread_id = new_id()
        await keep(connection, key, thread_id)
        result = await connection.execute(
            _CREATE,
            {
                "id": thread_id,
                "tenant": caller.tenant,
                "user_id": caller.user_id,
                "agent_type": new.agent_type,
                "title": new.title,
                "metadata": to_json(new.metadata).decode(),
                "options": _json(new.options),
            },
        )
        row = read_one(result, ThreadRow)
        if row is None:
            raise UnknownAgent(new.agent_type, caller.allowed_agents)
    return row


async def _fork(database: AsyncEngine, asked: fork.Fork, key: Key | None) -> UUID:
    forked = new_id()
    async with database.begin() as connection:
        await keep(connection, key, forked)
        await fork.fork(connection, asked, forked)
    return forked


def thread_of(row: ThreadRow) -> Thread:
    """Show a thread."""
    return Thread(
        id=row.id,
        user_id=row.user_id,
        agent_type=row.agent_type,
        title=row.title,
        created_at=row.created_at,
        updated_at=row.updated_at,
        last_message_at=row.last_message_at,
        unfinished_runs=row.unfinished_runs,
        metadata=metadata_of(row.metadata),
        options=None if row.options is None else metadata_of(row.options),
    )


def message_of(row: MessageRow) -> Message:
    """Show a message."""
    return Message(
        id=row.id,
        role=row.role,
        content=row.content,
        attachments=[MessageAttachment.model_validate(each) for each in attached_of(row.attachments)],
        created_at=row.created_at,
        metadata=metadata_of(row.metadata),
    )
