"""Routes: batches, each many stateless runs that are accepted together."""

from __future__ import annotations

import logging
import re
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from agent_relay.api.batches.queries import owned_batch, owned_batches
from agent_relay.api.batches.results import Results
from agent_relay.api.batches.schemas import BODY, BatchId
from agent_relay.api.dependencies import (
    AdmissionLimits,
    CallLimits,
    Cancel,
    Database,
    Queue,
    RedisClient,
    ResultFeeds,
    ServiceSettings,
    UploadLimits,
    Uploads,
    UrlOf,
    WebhookHosts,
)
from agent_relay.api.openapi import RESULTS
from agent_relay.api.options import check_options
from agent_relay.api.problems import Refused, invalid, responses, unknown_agent
from agent_relay.api.requests.idempotency import REPLAYED, IdempotencyKey, KeyHeader, key_of, once
from agent_relay.api.requests.identity import Caller
from agent_relay.api.requests.pagination import Cursor, Limit, Page
from agent_relay.api.requests.validation import StrictRoute, media_type_of
from agent_relay.api.schemas import LONGEST_START_SECONDS, LONGEST_WAIT_DEADLINE_SECONDS, AgentType, WebhookUrl
from agent_relay.api.streaming.response import Stream
from agent_relay.api.submission import LOOK_UP_SECONDS, warned_of
from agent_relay.shared import logs
from agent_relay.shared.away import skip_if_redis_away
from agent_relay.shared.batches.accept import Accepted, Submission, accept
from agent_relay.shared.batches.cancel import begin_to_cancel, cancel_some
from agent_relay.shared.batches.notifications import announce
from agent_relay.shared.batches.retry import retry
from agent_relay.shared.batches.spool import Spool
from agent_relay.shared.errors import UnknownAgent, WebhookRefused
from agent_relay.shared.idempotency import Repeated
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.schemas import Batch, batch_of, counts_of

log = logging.getLogger(__name__)

router = APIRouter(prefix="/batches", tags=["batches"], route_class=StrictRoute)

_NDJSON = "application/x-ndjson"
_PLACE = re.compile("0|[1-9][0-9]{0,9}")

_OF_LINES = "With `application/x-ndjson` only: "


@router.post(
    "",
    status_code=202,
    summary="Submit a batch",
    response_description="The batch, accepted; `Location` is its address.",
    responses=responses(404, 409, 413, 415),
    openapi_extra={"requestBody": BODY},
)
async def create_batch(
    request: Request,
    database: Database,
    queue: Queue,
    uploads: Uploads,
    upload_limits: UploadLimits,
    admission: AdmissionLimits,
    resolver: WebhookHosts,
    settings: ServiceSettings,
    url_of: UrlOf,
    caller: Caller,
    header: KeyHeader,
    response: Response,
    agent_type: Annotated[AgentType | None, Query(description=f"{_OF_LINES}the agent to ask.")] = None,
    metadata: Annotated[str | None, Query(description=f"{_OF_LINES}anything of yours, a JSON object.")] = None,
    options: Annotated[
        str | None, Query(description=f"{_OF_LINES}what you choose of the agent's options, a JSON object.")
    ] = None,
    max_running: Annotated[
        int | None, Query(ge=1, le=1_000_000, description=f"{_OF_LINES}how many of its runs may run at once.")
    ] = None,
    start_at: Annotated[
        str | None,
        Query(
            description=f"{_OF_LINES}none of its runs begins before this time.",
            json_schema_extra={"format": "date-time"},
        ),
    ] = None,
    start_after_s: Annotated[
        float | None,
        Query(
            ge=0,
            le=LONGEST_START_SECONDS,
            allow_inf_nan=False,
            description=f"{_OF_LINES}instead of `start_at`: seconds from acceptance.",
        ),
    ] = None,
    deadline_s: Annotated[
        float | None,
        Query(
            gt=0,
            allow_inf_nan=False,
            description=f"{_OF_LINES}seconds from acceptance, or the start, to the end of all runs.",
        ),
    ] = None,
    wait_deadline_s: Annotated[
        float | None,
        Query(
            gt=0,
            le=LONGEST_WAIT_DEADLINE_SECONDS,
            allow_inf_nan=False,
            description=f"{_OF_LINES}seconds that each run may wait for answers.",
        ),
    ] = None,
    webhook_url: Annotated[
        WebhookUrl | None, Query(description=f"{_OF_LINES}where to post the batch once it has ended.")
    ] = None,
) -> Batch:
    """All items are accepted, or none: a bad one, or a second one of a `custom_id`, is 422, with its place.

    As JSON, or as NDJSON with an item a line and the rest in the query string. Each item becomes a stateless run.
    """
    said = {
        "agent_type": agent_type,
        "metadata": metadata,
        "options": options,
        "max_running": max_running,
        "start_at": start_at,
        "start_after_s": start_after_s,
        "deadline_s": deadline_s,
        "wait_deadline_s": wait_deadline_s,
        "webhook_url": webhook_url,
    }
    lines = media_type_of(request, "application/json", _NDJSON) == _NDJSON
    if not lines and (given := [name for name in said if said[name] is not None]):
        raise invalid(f"?{given[0]}", "extra_forbidden", "Say it in the body")
    with Spool(uploads.room, lambda: upload_limits.opened(caller)) as items:
        taken = await uploads.take(request, caller, said if lines else None, items)
        limit = settings.max_batch_deadline_seconds
        deadline = taken.head.deadline_s or settings.batch_deadline_seconds
        at = "?" if lines else "/"
        if not caller.may_ask(agent := taken.head.agent_type):
            refused = UnknownAgent(agent, caller.allowed_agents)
            raise await unknown_agent(database, refused, f"{at}agent_type")
        if deadline > limit:
            raise invalid(f"{at}deadline_s", "less_than_equal", f"At most {limit:g} seconds")
        if taken.head.webhook_url is not None:
            try:
                await resolver.check(taken.head.webhook_url, caller.tenant, seconds=LOOK_UP_SECONDS)
            except WebhookRefused as refused:
                raise invalid(f"{at}webhook_url", refused.code, str(refused)) from None
        if taken.head.options is not None:
            await check_options(database, caller, taken.head.options, agent_type=agent, pointer=f"{at}options")
        asked = Submission(
            tenant=caller.tenant,
            user_id=caller.user_id,
            agent_type=taken.head.agent_type,
            deadline_seconds=deadline,
            start_at=taken.head.start_at,
            start_after_seconds=taken.head.start_after_s,
            run_seconds=settings.batch_run_seconds,
            max_running=taken.head.max_running,
            metadata=taken.head.metadata,
            options=taken.head.options,
            webhook_url=taken.head.webhook_url,
            wait_seconds=taken.head.wait_deadline_s,
        )
        key = key_of(request, caller, header, taken.digest)
        try:
            async with uploads.storing:
                accepted = await once(lambda: accept(database, asked, items, admission, key))
        except UnknownAgent as unknown:
            raise await unknown_agent(database, unknown, f"{at}agent_type") from None
        except Repeated as repeated:
            row = await owned_batch(database, caller, repeated.created)
            response.headers.update({**REPLAYED, **warned_of(row), "Location": url_of("batches", row.id)})
            return batch_of(row)
    return await _begun(queue, url_of, accepted, response)


@router.get("", summary="List your batches", response_description="A page of batches.", responses=responses())
async def list_batches(database: Database, caller: Caller, cursor: Cursor, limit: Limit = 20) -> Page[Batch]:
    """The user's batches, newest first."""
    at, batch_id = cursor.read(datetime.fromisoformat, UUID)
    rows = await owned_batches(database, caller, before=(at, batch_id), limit=limit)
    return cursor.page(rows, limit, batch_of, lambda row: [row.created_at.isoformat(), row.id])


@router.get("/{batch_id}", summary="Read a batch", response_description="The batch.", responses=responses(404))
async def read_batch(batch_id: BatchId, database: Database, caller: Caller) -> Batch:
    """The batch as it is now; its counts are of one moment."""
    return batch_of(await owned_batch(database, caller, batch_id))


@router.get(
    "/{batch_id}/results",
    summary="Read or follow the results of a batch",
    response_class=Response,
    responses={**responses(404), 200: RESULTS},
)
async def read_results(
    batch_id: BatchId,
    database: Database,
    feeds: ResultFeeds,
    calls: CallLimits,
    settings: ServiceSettings,
    caller: Caller,
    after: Annotated[
        str,
        Query(
            description="Go on after the result of this `cursor`.",
            json_schema_extra={"pattern": f"^({_PLACE.pattern})$"},
        ),
    ] = "0",
    follow: Annotated[  # noqa: FBT002  (a query parameter)
        bool, Query(description="Go on until the batch has ended; the last line is its counts.")
    ] = False,
) -> Response:
    """The results, in the order in which the runs ended; going on after a `cursor` skips none and repeats none."""
    row = await owned_batch(database, caller, batch_id)
    if not _PLACE.fullmatch(after):
        raise Refused(400, "The cursor is not one of a result.", code="malformed_cursor")
    counts = counts_of(row)
    if int(after) > counts.succeeded + counts.failed + counts.cancelled:
        raise Refused(400, "The cursor is beyond the last result.", code="impossible_cursor")
    reader = Results(
        database,
        feeds,
        calls.open(caller),
        row,
        int(after),
        follow=follow,
        keepalive_seconds=settings.keepalive_seconds,
    )
    return Stream(reader, {})


@router.post(
    "/{batch_id}/cancel",
    summary="Cancel a batch",
    response_description="The batch, which has ended.",
    response_model=Batch,
    responses={**responses(404), 202: {"model": Batch, "description": "Some of its runs have not ended yet."}},
)
async def cancel_batch(
    batch_id: BatchId,
    database: Database,
    queue: Queue,
    redis: RedisClient,
    canceller: Cancel,
    settings: ServiceSettings,
    url_of: UrlOf,
    caller: Caller,
) -> Response:
    """From now on none of its runs starts. Those that wait are cancelled; those that run are asked to end."""
    await owned_batch(database, caller, batch_id)
    await begin_to_cancel(database, batch_id)
    with skip_if_redis_away(log, "batches.redis_away batch_id=%s", batch_id):
        while step := await cancel_some(database, batch_id):
            await queue.silence(step.silenced)
            await canceller.tell_workers(step.wished)
    await announce(redis, settings.names, [batch_id])
    row = await owned_batch(database, caller, batch_id)
    status = 202 if row.finished_at is None else 200
    return JSONResponse(batch_of(row).model_dump(mode="json"), status, {"Location": url_of("batches", batch_id)})


@router.post(
    "/{batch_id}/retry",
    status_code=202,
    summary="Retry the failed items of a batch",
    response_description="A new batch, of the failed items; `Location` is its address.",
    responses=responses(404, 409),
)
async def retry_batch(
    batch_id: BatchId,
    database: Database,
    queue: Queue,
    admission: AdmissionLimits,
    settings: ServiceSettings,
    url_of: UrlOf,
    caller: Caller,
    key: IdempotencyKey,
    response: Response,
) -> Batch:
    """Once the batch has ended: the same agent is asked the same again, in a batch of its own with `retry_of`."""
    former = await owned_batch(database, caller, batch_id)
    if not caller.may_ask(former.agent_type):
        raise UnknownAgent(former.agent_type, caller.allowed_agents)
    run_seconds = settings.batch_run_seconds
    try:
        accepted = await once(lambda: retry(database, batch_id, run_seconds, admission, key))
    except Repeated as repeated:
        row = await owned_batch(database, caller, repeated.created)
        response.headers.update({**REPLAYED, **warned_of(row), "Location": url_of("batches", row.id)})
        return batch_of(row)
    return await _begun(queue, url_of, accepted, response)


async def _begun(queue: RunQueue, url_of: UrlOf, accepted: Accepted, response: Response) -> Batch:
    """Ring for workers, now that the batch is committed, and show it as it was then."""
    logs.BATCH_ID.set(accepted.batch.id)
    log.info("batches.accepted agent=%s items=%d", accepted.batch.agent_type, accepted.batch.total)
    await queue.ring(accepted.rings())
    response.headers.update({**warned_of(accepted.batch), "Location": url_of("batches", accepted.batch.id)})
    return batch_of(accepted.batch)
