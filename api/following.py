"""Answer with the stream of a run: cursor and framing are checked before the first byte."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Response

from api.dependencies import Parts
from api.framing import Framing, negotiate
from api.limits import OpenCall
from api.problems import Refused
from api.stream import Follower, Stream
from shared.event_log import BEFORE_ALL, Id
from shared.tables import TERMINAL

Deltas = Annotated[
    bool, Query(description="Send `{drop, append}` instead of the whole `token` where that says it: see *The stream*.")
]


def _last_seen(
    after: Annotated[str | None, Query(description="Go on after the event of this id.")] = None,
    in_header: Annotated[
        str | None, Header(alias="Last-Event-ID", description="The same; it counts if both are given.")
    ] = None,
    in_query: Annotated[
        str | None,
        Query(
            alias="lastEventId",
            description="The same, as polyfills of `EventSource` say it; it counts before `after`. `lastEventID`,"
            " `last-event-id`, `last_event_id` and `evs_last_event_id` are taken, too.",
        ),
    ] = None,
    of_an_acronym: Annotated[str | None, Query(alias="lastEventID", include_in_schema=False)] = None,
    with_dashes: Annotated[str | None, Query(alias="last-event-id", include_in_schema=False)] = None,
    with_underscores: Annotated[str | None, Query(alias="last_event_id", include_in_schema=False)] = None,
    with_prefix: Annotated[str | None, Query(alias="evs_last_event_id", include_in_schema=False)] = None,
) -> str | None:
    """Read where a reader got to. A reader that comes back says it beside the `after` that it began with.

    An `EventSource` that has seen no event yet may say the empty string for it.
    """
    said = (in_header, in_query, of_an_acronym, with_dashes, with_underscores, with_prefix)
    return next(filter(None, said), after)


LastSeen = Annotated[str | None, Depends(_last_seen)]
"""The id of the event that a reader saw last; None from the beginning."""

_ID = re.compile(r"(0|[1-9]\d{0,9})-(0|[1-9]\d{0,9})", re.ASCII)


def follow(
    service: Parts,
    call: OpenCall,
    run: Any,
    *,
    accept: str | None,
    cursor: str | None,
    deltas: bool,
    headers: dict[str, str] | None = None,
    hung_up: Callable[[], Awaitable[None]] | None = None,
) -> Response:
    """Stream a run from a cursor on; the call is closed with the stream.

    Raises:
        Refused: 406, the caller takes no stream; 400, the cursor is none that this run ever had.
    """
    framing = negotiate(accept)
    after = cursor_of(run, cursor)
    if run.status in TERMINAL and after == Id(run.attempt + 1, 1):
        call.close()
        if framing is Framing.SSE:
            return Response(status_code=204)
        return Response(b"", media_type=framing.value)
    follower = Follower(service.relay, call, run, after, framing, deltas=deltas, hung_up=hung_up)
    return Stream(follower, headers or {})


def cursor_of(run: Any, cursor: str | None) -> Id:
    """Read where a reader got to.

    Raises:
        Refused: 400, it is malformed, or beyond what the run has told.
    """
    if cursor is None:
        return BEFORE_ALL
    if not _ID.fullmatch(cursor):
        raise Refused(400, "The cursor is not an event id.", code="malformed_cursor")
    given = Id.parse(cursor)
    end = Id(run.attempt + 1, 1) if run.status in TERMINAL else Id(run.attempt + 1, 0)
    if given > end or given == BEFORE_ALL or (given.attempt == 0 and given.n > 1):
        raise Refused(400, "The cursor is beyond what this run has told.", code="impossible_cursor")
    return given
