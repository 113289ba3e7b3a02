"""Routes: ask an agent and stay on the line, for the whole answer or for every partial of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse

from agent_relay.api.cancellation import Canceller
from agent_relay.api.dependencies import CallLimits, Cancel, Database, Queue, RunRelay, Submit, UrlOf
from agent_relay.api.openapi import STREAM
from agent_relay.api.problems import FAILURE_STATUS, Refused, responses
from agent_relay.api.queries import owned_run
from agent_relay.api.requests.idempotency import IdempotencyKey
from agent_relay.api.requests.identity import Caller
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.routes.runs import shown
from agent_relay.api.schemas import Answer, AttendedQuery
from agent_relay.api.streaming.follow import Deltas, Until, follow
from agent_relay.api.streaming.sse_and_ndjson import negotiate
from agent_relay.api.submission import ended
from agent_relay.shared.clock import now
from agent_relay.shared.database.tables import TERMINAL, RunStatus
from agent_relay.shared.failure_codes import SENTENCES, FailureCode
from agent_relay.shared.rows import RunRow
from agent_relay.shared.schemas import Run, error_of, output_of

router = APIRouter(prefix="/agent", tags=["ask"], route_class=StrictRoute)

DEFAULT_WAIT_SECONDS = 60
LONGEST_WAIT_SECONDS = 300

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?", re.IGNORECASE)


@router.post(
    "/query",
    summary="Ask, and wait for the answer",
    response_description="The answer.",
    response_model=Answer,
    responses={
        **responses(404, 409, 413, 415, 502, 504),
        202: {
            "model": Run,
            "description": "It takes longer than you wanted to wait, starts after that, or waits for answers: here is"
            " the run.",
        },
    },
)
async def query(
    request: Request,
    new: AttendedQuery,
    submitter: Submit,
    database: Database,
    queue: Queue,
    relay: RunRelay,
    canceller: Cancel,
    calls: CallLimits,
    url_of: UrlOf,
    caller: Caller,
    key: IdempotencyKey,
    prefer: Annotated[
        str | None, Header(alias="Prefer", description="`wait=N`: seconds to wait, 60 by default, at most 300.")
    ] = None,
) -> Response:
    """Ask and block until the answer is stored. If the run fails, the problem has the reason, and `run_id`."""
    wanted = _WAIT.search(prefer or "")
    seconds = min(int(wanted[1]), LONGEST_WAIT_SECONDS) if wanted else DEFAULT_WAIT_SECONDS
    with calls.opened(caller):
        asked = await submitter.ask(caller, new, key)
        row = asked.run
        hung_up = (
            asyncio.create_task(cancel_when_gone(request, canceller, row.id)) if new.on_disconnect == "cancel" else None
        )
        try:
            if row.start_at is None or row.start_at < now() + timedelta(seconds=seconds):
                await ended(relay, row, seconds, or_waits=True)
            row = await owned_run(database, caller, row.id)
        finally:
            if hung_up is not None:
                hung_up.cancel()
    headers = asked.headers | {"Location": url_of("runs", row.id)}
    if wanted:
        headers["Preference-Applied"] = f"wait={seconds}"
    if row.status not in TERMINAL:
        return JSONResponse((await shown(queue, row)).model_dump(mode="json"), 202, headers)
    if row.status != RunStatus.SUCCEEDED:
        raise _failed(row, asked.headers)
    answer = Answer(
        thread_id=row.thread_id,
        message_id=row.message_id,
        run_id=row.id,
        response=row.output or "",
        output=output_of(row.output, text_output=row.text_output),
    )
    return JSONResponse(answer.model_dump(mode="json"), 200, headers)


@router.post(
    "/stream",
    summary="Ask, and follow the answer as it is written",
    response_class=Response,
    responses={
        **responses(404, 406, 409, 413, 415),
        200: STREAM,
    },
)
async def stream(
    new: AttendedQuery,
    submitter: Submit,
    relay: RunRelay,
    canceller: Cancel,
    calls: CallLimits,
    url_of: UrlOf,
    caller: Caller,
    key: IdempotencyKey,
    deltas: Deltas = False,  # noqa: FBT002  (a query parameter)
    until: Until = None,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Ask and get every event as it is born. `Content-Location` names the run: when the line breaks, go on there."""
    negotiate(accept)
    with calls.open(caller).kept() as call:
        asked = await submitter.ask(caller, new, key)
        row, url = asked.run, url_of("runs", asked.run.id)
        return follow(
            relay,
            call,
            row,
            accept=accept,
            cursor=None,
            deltas=deltas,
            until=until,
            headers={**asked.headers, "Content-Location": url, "Link": f'<{url}/stream>; rel="monitor"'},
            hung_up=cancelling(canceller, row.id) if new.on_disconnect == "cancel" else None,
        )


async def cancel_when_gone(request: Request, canceller: Canceller, run_id: UUID) -> None:
    """Cancel the run once its caller has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    await canceller.cancel(run_id)


def cancelling(canceller: Canceller, run_id: UUID) -> Callable[[], Awaitable[None]]:
    """Make the function that cancels a run."""

    async def hung_up() -> None:
        await canceller.cancel(run_id)

    return hung_up


def _failed(row: RunRow, headers: dict[str, str]) -> Refused:
    """Say as a problem how a run failed."""
    error = None if row.error is None else error_of(row.error)
    code = FailureCode.CANCELLED if error is None else error.code
    detail = SENTENCES[code] if error is None else error.message
    thread_id = None if row.thread_id is None else str(row.thread_id)
    return Refused(FAILURE_STATUS[code], detail, code=code, headers=headers, run_id=str(row.id), thread_id=thread_id)
