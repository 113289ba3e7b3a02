"""Routes: ask an agent and stay on the line, for the whole answer or for every partial of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse

from api.asking import ask, ended
from api.dependencies import Parts, Service
from api.docs import STREAM
from api.following import Deltas, follow
from api.framing import negotiate
from api.idempotency import IdempotencyKey
from api.identity import Caller, Owner
from api.problems import FAILURE_STATUS, Refused, responses
from api.resources import Answer, AttendedQuery
from api.run_cancel import cancel_run
from api.run_rows import owned_run
from api.runs import shown
from api.strict import StrictRoute
from shared.failures import SENTENCES, FailureCode
from shared.idempotency import Key
from shared.resources import Run, output_of
from shared.tables import TERMINAL, RunStatus

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
        202: {"model": Run, "description": "It takes longer than you wanted to wait: here is the run."},
    },
)
async def query(
    request: Request,
    new: AttendedQuery,
    service: Service,
    caller: Caller,
    key: IdempotencyKey,
    prefer: Annotated[
        str | None, Header(alias="Prefer", description="`wait=N`: seconds to wait, 60 by default, at most 300.")
    ] = None,
) -> Response:
    """Ask and block until the answer is stored. If the run fails, the problem says why, with `run_id`."""
    with service.limits.calls.opened(caller):
        return await _ask_and_wait(request, new, service, caller, key, prefer)


async def _ask_and_wait(
    request: Request, new: AttendedQuery, service: Parts, caller: Owner, key: Key | None, prefer: str | None
) -> Response:
    asked = await ask(service, caller, new, key)
    row = asked.run
    hung_up = asyncio.create_task(_hung_up(request, service, row)) if new.on_disconnect == "cancel" else None
    wanted = _WAIT.search(prefer or "")
    seconds = min(int(wanted[1]), LONGEST_WAIT_SECONDS) if wanted else DEFAULT_WAIT_SECONDS
    try:
        await ended(service, row, seconds)
        row = await owned_run(service.database, caller, row.id)
    finally:
        if hung_up is not None:
            hung_up.cancel()
    headers = asked.headers | {"Location": service.url_of("runs", row.id)}
    if wanted:
        headers["Preference-Applied"] = f"wait={seconds}"
    if row.status not in TERMINAL:
        return JSONResponse((await shown(service, row)).model_dump(mode="json"), 202, headers)
    if row.status != RunStatus.SUCCEEDED:
        raise _failed(row, asked.headers)
    answer = Answer(
        thread_id=row.thread_id,
        message_id=row.message_id,
        run_id=row.id,
        response=row.output,
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
    service: Service,
    caller: Caller,
    key: IdempotencyKey,
    deltas: Deltas = False,  # noqa: FBT002  (a query parameter)
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Ask and get every event as it is born. `Content-Location` names the run: when the line breaks, go on there."""
    negotiate(accept)
    with service.limits.calls.open(caller).kept() as call:
        asked = await ask(service, caller, new, key)
        row, url = asked.run, service.url_of("runs", asked.run.id)
        return follow(
            service,
            call,
            row,
            accept=accept,
            cursor=None,
            deltas=deltas,
            headers={**asked.headers, "Content-Location": url, "Link": f'<{url}/stream>; rel="monitor"'},
            hung_up=_cancelling(service, row.id) if new.on_disconnect == "cancel" else None,
        )


async def _hung_up(request: Request, service: Parts, row: Any) -> None:
    """Cancel the run once its caller has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    await cancel_run(service, row.id)


def _cancelling(service: Parts, run_id: UUID) -> Callable[[], Awaitable[None]]:
    async def hung_up() -> None:
        await cancel_run(service, run_id)

    return hung_up


def _failed(row: Any, headers: dict[str, str]) -> Refused:
    """Say as a problem how a run failed."""
    code = FailureCode(row.error["code"]) if row.error else FailureCode.CANCELLED
    detail = row.error["message"] if row.error else SENTENCES[FailureCode.CANCELLED]
    thread_id = None if row.thread_id is None else str(row.thread_id)
    return Refused(FAILURE_STATUS[code], detail, code=code, headers=headers, run_id=str(row.id), thread_id=thread_id)
