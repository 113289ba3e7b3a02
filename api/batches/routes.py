"""Routes: batches, each many stateless runs that are accepted together."""

from __future__ import annotations

import logging
import re
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from api.asking import LOOK_UP_SECONDS, warned_of
from api.batches.resources import BODY, BatchId
from api.batches.results import Results
from api.batches.rows import owned_batch, owned_batches
from api.dependencies import Parts, Service
from api.docs import RESULTS
from api.idempotency import REPLAYED, IdempotencyKey, KeyHeader, key_of, once
from api.identity import Caller
from api.pages import Cursor, Limit, Page
from api.problems import Refused, invalid, responses, unknown_agent
from api.run_cancel import tell_workers
from api.stream import Stream
from api.strict import StrictRoute, media_type_of
from shared import logs
from shared.batches import Accepted, Manifest, Submission, accept, announce, begin_to_cancel, cancel_some, retry
from shared.errors import UnknownAgent, WebhookRefused
from shared.idempotency import Repeated
from shared.resources import Batch, batch_of, counts_of
from shared.webhooks.addresses import LONGEST_URL

log = logging.getLogger(__name__)

router = APIRouter(prefix="/batches", tags=["batches"], route_class=StrictRoute)

_NDJSON = "application/x-ndjson"
_PLACE = re.compile(r"0|[1-9]\d{0,9}", re.ASCII)

_OF_LINES = "With `application/x-ndjson` only: "


@router.post(
    "",
    status_code=202,
    summary="Submit a batch",
    response_description="The batch, accepted; `Location` says where it is.",
    responses=responses(409, 413, 415),
    openapi_extra={"requestBody": BODY},
)
async def create_batch(
    request: Request,
    service: Service,
    caller: Caller,
    header: KeyHeader,
    response: Response,
    agent_type: Annotated[str | None, Query(max_length=63, description=f"{_OF_LINES}the agent to ask.")] = None,
    metadata: Annotated[str | None, Query(description=f"{_OF_LINES}anything of yours, a JSON object.")] = None,
    max_running: Annotated[
        int | None, Query(ge=1, le=1_000_000, description=f"{_OF_LINES}how many of its runs may run at once.")
    ] = None,
    deadline_s: Annotated[
        float | None,
        Query(gt=0, allow_inf_nan=False, description=f"{_OF_LINES}seconds from acceptance to the end of all runs."),
    ] = None,
    webhook_url: Annotated[
        str | None, Query(max_length=LONGEST_URL, description=f"{_OF_LINES}where to post the batch once it has ended.")
    ] = None,
) -> Batch:
    """All items are accepted, or none: a bad one, or a `custom_id` that stands there twice, is 422 and says where.

    As JSON, or as NDJSON with an item a line and the rest in the query string. Each item becomes a stateless run.
    """
    said = {
        "agent_type": agent_type,
        "metadata": metadata,
        "max_running": max_running,
        "deadline_s": deadline_s,
        "webhook_url": webhook_url,
    }
    lines = media_type_of(request, "application/json", _NDJSON) == _NDJSON
    if not lines and (given := [name for name in said if said[name] is not None]):
        raise invalid(f"?{given[0]}", "extra_forbidden", "Say it in the body")
    with Manifest(service.intake.room, lambda: service.limits.uploads.opened(caller)) as items:
        taken = await service.intake.take(request, said if lines else None, items)
        limit = service.settings.max_batch_deadline_seconds
        deadline = taken.head.deadline_s or service.settings.batch_deadline_seconds
        at = "?" if lines else "/"
        if not caller.may_ask(agent := taken.head.agent_type):
            refused = UnknownAgent(agent, caller.allowed_agents)
            raise await unknown_agent(service.database, refused, f"{at}agent_type")
        if deadline > limit:
            raise invalid(f"{at}deadline_s", "less_than_equal", f"At most {limit:g} seconds")
        if taken.head.webhook_url is not None:
            try:
                await service.resolver.check(taken.head.webhook_url, seconds=LOOK_UP_SECONDS)
            except WebhookRefused as refused:
                raise invalid(f"{at}webhook_url", refused.code, str(refused)) from None
        asked = Submission(
            tenant=caller.tenant,
            user_id=caller.user_id,
            agent_type=taken.head.agent_type,
            deadline_seconds=deadline,
            run_seconds=service.settings.batch_run_seconds,
            max_running=taken.head.max_running,
            metadata=taken.head.metadata,
            webhook_url=taken.head.webhook_url,
        )
        key = key_of(request, service, caller, header, taken.digest)
        try:
            async with service.intake.storing:
                accepted = await once(lambda: accept(service.database, asked, items, service.admission, key))
        except UnknownAgent as unknown:
            raise await unknown_agent(service.database, unknown, f"{at}agent_type") from None
        except Repeated as repeated:
            row = await owned_batch(service.database, caller, repeated.created)
            response.headers.update({**REPLAYED, **warned_of(row), "Location": service.url_of("batches", row.id)})
            return batch_of(row)
    return await _begun(service, accepted, response)


@router.get("", summary="List your batches", response_description="A page of batches.", responses=responses())
async def list_batches(service: Service, caller: Caller, cursor: Cursor, limit: Limit = 20) -> Page[Batch]:
    """The user's batches, newest first."""
    at, batch_id = cursor.read(datetime.fromisoformat, UUID)
    rows = await owned_batches(service.database, caller, before=(at, batch_id), limit=limit + 1)
    return cursor.page(rows, limit, batch_of, lambda row: [row.created_at.isoformat(), row.id])


@router.get("/{batch_id}", summary="Read a batch", response_description="The batch.", responses=responses(404))
async def read_batch(batch_id: BatchId, service: Service, caller: Caller) -> Batch:
    """The batch as it is now; its counts are of one moment."""
    return batch_of(await owned_batch(service.database, caller, batch_id))


@router.get(
    "/{batch_id}/results",
    summary="Read or follow the results of a batch",
    response_class=Response,
    responses={**responses(404), 200: RESULTS},
)
async def read_results(
    batch_id: BatchId,
    service: Service,
    caller: Caller,
    after: Annotated[str, Query(description="Go on after the result of this `cursor`.")] = "0",
    follow: Annotated[  # noqa: FBT002  (a query parameter)
        bool, Query(description="Go on until the batch has ended; the last line is its counts.")
    ] = False,
) -> Response:
    """The results, in the order in which the runs ended; going on after a `cursor` skips none and repeats none."""
    row = await owned_batch(service.database, caller, batch_id)
    if not _PLACE.fullmatch(after):
        raise Refused(400, "The cursor is not one of a result.", code="malformed_cursor")
    counts = counts_of(row)
    if int(after) > counts.succeeded + counts.failed + counts.cancelled:
        raise Refused(400, "The cursor is beyond the last result.", code="impossible_cursor")
    reader = Results(
        service.database,
        service.batch_feeds,
        service.limits.calls.open(caller),
        row,
        int(after),
        follow=follow,
        keepalive_seconds=service.settings.keepalive_seconds,
    )
    return Stream(reader, {})


@router.post(
    "/{batch_id}/cancel",
    summary="Cancel a batch",
    response_description="The batch, which has ended.",
    response_model=Batch,
    responses={**responses(404), 202: {"model": Batch, "description": "Some of its runs have not ended yet."}},
)
async def cancel_batch(batch_id: BatchId, service: Service, caller: Caller) -> Response:
    """From now on none of its runs starts. Those that wait are cancelled; those that run are asked to end."""
    await owned_batch(service.database, caller, batch_id)
    await begin_to_cancel(service.database, batch_id)
    try:
        while step := await cancel_some(service.database, batch_id):
            await service.lanes.silence(step.silenced)
            await tell_workers(service, step.wished)
    except (RedisError, OSError) as away:
        log.warning("batches.redis_away batch_id=%s error=%r", batch_id, away)
    await announce(service.redis, service.settings.names, [batch_id])
    row = await owned_batch(service.database, caller, batch_id)
    status = 202 if row.finished_at is None else 200
    return JSONResponse(
        batch_of(row).model_dump(mode="json"), status, {"Location": service.url_of("batches", batch_id)}
    )


@router.post(
    "/{batch_id}/retry",
    status_code=202,
    summary="Retry what failed of a batch",
    response_description="A new batch, of the failed items; `Location` says where it is.",
    responses=responses(404, 409),
)
async def retry_batch(
    batch_id: BatchId, service: Service, caller: Caller, key: IdempotencyKey, response: Response
) -> Batch:
    """Once the batch has ended: the same agent is asked the same again, in a batch of its own with `retry_of`."""
    former = await owned_batch(service.database, caller, batch_id)
    if not caller.may_ask(former.agent_type):
        raise UnknownAgent(former.agent_type, caller.allowed_agents)
    run_seconds = service.settings.batch_run_seconds
    try:
        accepted = await once(lambda: retry(service.database, batch_id, run_seconds, service.admission, key))
    except Repeated as repeated:
        row = await owned_batch(service.database, caller, repeated.created)
        response.headers.update({**REPLAYED, **warned_of(row), "Location": service.url_of("batches", row.id)})
        return batch_of(row)
    return await _begun(service, accepted, response)


async def _begun(service: Parts, accepted: Accepted, response: Response) -> Batch:
    """Ring for workers, now that the batch is committed, and show it as it was then."""
    logs.BATCH_ID.set(accepted.batch.id)
    log.info("batches.accepted agent=%s items=%d", accepted.batch.agent_type, accepted.batch.total)
    await service.lanes.ring(accepted.rings())
    response.headers.update({**warned_of(accepted.batch), "Location": service.url_of("batches", accepted.batch.id)})
    return batch_of(accepted.batch)
