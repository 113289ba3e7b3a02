"""Answer with the stream of a run or a thread: cursor and framing are checked before the first byte."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Depends, Header, Query, Response

from agent_relay.api.problems import Refused
from agent_relay.api.requests.rate_limits import OpenCall
from agent_relay.api.streaming.native_renderer import NativeRenderer
from agent_relay.api.streaming.relay import Relay
from agent_relay.api.streaming.response import Follower, Stream
from agent_relay.api.streaming.sse_and_ndjson import Framing, negotiate
from agent_relay.api.streaming.thread_follower import ThreadFollower
from agent_relay.api.streaming.threads import ThreadPlace
from agent_relay.shared.database.tables import TERMINAL, RunStatus
from agent_relay.shared.event_log import BEFORE_ALL, Id
from agent_relay.shared.rows import RunRow

Deltas = Annotated[
    bool, Query(description="Send `{drop, append}` instead of the whole `token` where that says it: see *The stream*.")
]

Until = Annotated[
    Literal["waiting"] | None,
    Query(description="`waiting`: end the stream also where the run waits for answers, with `done`."),
]

ID_PATTERN = "(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,9})"
"""How the id of an event is written."""
_ID = re.compile(ID_PATTERN)


async def _last_seen(
    after: Annotated[
        str | None,
        Query(description="Go on after the event of this id.", json_schema_extra={"pattern": f"^{ID_PATTERN}$"}),
    ] = None,
    in_header: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            description="The same; it counts if both are given.",
            json_schema_extra={"pattern": f"^({ID_PATTERN})?$"},
        ),
    ] = None,
    in_query: Annotated[
        str | None,
        Query(
            alias="lastEventId",
            description="The same, as polyfills of `EventSource` say it; it counts before `after`. `lastEventID`,"
            " `last-event-id`, `last_event_id` and `evs_last_event_id` are taken, too.",
            json_schema_extra={"pattern": f"^({ID_PATTERN})?$"},
        ),
    ] = None,
    of_an_acronym: Annotated[str | None, Query(alias="lastEventID", include_in_schema=False)] = None,
    with_dashes: Annotated[str | None, Query(alias="last-event-id", include_in_schema=False)] = None,
    with_underscores: Annotated[str | None, Query(alias="last_event_id", include_in_schema=False)] = None,
    with_prefix: Annotated[str | None, Query(alias="evs_last_event_id", include_in_schema=False)] = None,
) -> Id | None:
    """Read the cursor of a reader. A reader that reconnects sends it beside its first `after`.

    An `EventSource` that has received no event yet may send an empty string for it.

    Raises:
        Refused: 400, one of them is malformed, also where another one counts.
    """
    said = (in_header, in_query, of_an_acronym, with_dashes, with_underscores, with_prefix)
    given = [_read(text) for text in said if text]
    given += [] if after is None else [_read(after)]
    return given[0] if given else None


def _read(text: str) -> Id:
    try:
        if _ID.fullmatch(text):  # `Id.parse` takes zeros before a number.
            return Id.parse(text)
    except ValueError:
        pass
    raise Refused(400, "The cursor is not an event id.", code="malformed_cursor")


LastSeen = Annotated[Id | None, Depends(_last_seen)]
"""The id of the event that a reader saw last; None from the beginning."""

PLACE_PATTERN = f"(0|[1-9][0-9]{{0,17}})-{ID_PATTERN}"
"""How the id of an event is written in the stream of a thread."""
_PLACE = re.compile(PLACE_PATTERN)


async def _last_seen_in_thread(
    after: Annotated[
        str | None,
        Query(description="Go on after the event of this id.", json_schema_extra={"pattern": f"^{PLACE_PATTERN}$"}),
    ] = None,
    in_header: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            description="The same; it counts if both are given.",
            json_schema_extra={"pattern": f"^({PLACE_PATTERN})?$"},
        ),
    ] = None,
    in_query: Annotated[
        str | None,
        Query(
            alias="lastEventId",
            description="The same, as polyfills of `EventSource` say it; it counts before `after`.",
            json_schema_extra={"pattern": f"^({PLACE_PATTERN})?$"},
        ),
    ] = None,
) -> ThreadPlace | None:
    """Read where a reader of a thread got to, as for a run."""
    given = [_read_place(text) for text in (in_header, in_query) if text]
    given += [] if after is None else [_read_place(after)]
    return given[0] if given else None


def _read_place(text: str) -> ThreadPlace:
    if not _PLACE.fullmatch(text):
        raise Refused(400, "The cursor is not an event id of a thread's stream.", code="malformed_cursor")
    seq, _, event_id = text.partition("-")
    return ThreadPlace(int(seq), _read(event_id))


LastSeenInThread = Annotated[ThreadPlace | None, Depends(_last_seen_in_thread)]
"""The id of the event that a reader saw last of a thread; None from the beginning."""


def follow(
    relay: Relay,
    call: OpenCall,
    run: RunRow,
    *,
    accept: str | None,
    cursor: Id | None,
    deltas: bool,
    until: Literal["waiting"] | None = None,
    headers: dict[str, str] | None = None,
    hung_up: Callable[[], Awaitable[None]] | None = None,
) -> Response:
    """Stream a run from a cursor on; the call is closed with the stream.

    Raises:
        Refused: 406, the caller takes no stream; 400, the cursor is none that this run ever had.
    """
    framing = negotiate(accept)
    after = possible(run, cursor)
    waits = until is not None and run.status == RunStatus.WAITING
    if (run.status in TERMINAL and after == Id(run.attempt + 1, 1)) or (
        waits and after == Id(run.attempt, run.last_entry)
    ):
        call.close()
        if framing is Framing.SSE:
            return Response(status_code=204)
        return Response(b"", media_type=framing.value)
    renderer = NativeRenderer(run, framing, deltas=deltas)
    follower = Follower(relay, call, run, after, renderer, until_waiting=until is not None, hung_up=hung_up)
    return Stream(follower, headers or {})


async def follow_thread(
    relay: Relay,
    call: OpenCall,
    thread_id: UUID,
    *,
    accept: str | None,
    cursor: ThreadPlace | None,
    from_run: UUID | None,
    deltas: bool,
) -> Response:
    """Stream a thread from a cursor on, or without one from a run on; the call is closed with the stream.

    Raises:
        Refused: 406, the caller takes no stream; 400, the cursor is none that this thread ever had; 409, the run has
            no place in it yet.
        NotFound: the run is not of this thread.
    """
    framing = negotiate(accept)
    told, first = 0, None
    if cursor is not None:
        run = await relay.threads.run_at(thread_id, cursor.seq)
        if run is None:
            raise Refused(400, "The cursor is beyond what this thread has told.", code="impossible_cursor")
        after = possible(run, cursor.id)
        told = run.seq
        if run.status not in TERMINAL or after < Id(run.attempt + 1, 1):
            first = run, after
    elif from_run is not None:
        seq = await relay.threads.place_of(thread_id, from_run)
        if seq is None:
            raise Refused(409, "The run starts later: it has no place in the thread yet.", code="not_started")
        told = seq - 1
    return Stream(ThreadFollower(relay, call, thread_id, framing, deltas=deltas, told=told, first=first), {})


def possible(run: RunRow, cursor: Id | None) -> Id:
    """Check the cursor of a reader.

    Raises:
        Refused: 400, it is beyond the events of the run. Only Redis, which may have lost it too, has the last id of
            an attempt that goes on or was lost: there, any number of that attempt is taken.
    """
    if cursor is None:
        return BEFORE_ALL
    end = Id(run.attempt + 1, 1) if run.status in TERMINAL else Id(run.attempt + 1, 0)
    is_of_last_attempt = run.status == RunStatus.SUCCEEDED and cursor.attempt == run.attempt
    if (
        cursor > end
        or cursor == BEFORE_ALL
        or (cursor.attempt == 0 and cursor.n > 1)
        or (is_of_last_attempt and cursor.n > run.last_entry + 1)  # If the log was lost, there is one more entry.
    ):
        raise Refused(400, "The cursor is beyond what this run has told.", code="impossible_cursor")
    return cursor
