"""Cancel a run: end it at once if nobody holds it, else tell its worker."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

from redis.exceptions import RedisError

from api.dependencies import Parts
from shared.failpoints import Failpoint, reached
from shared.metrics import run_ended
from shared.runs import Cancellation, cancel, next_in_thread

log = logging.getLogger(__name__)


async def cancel_run(service: Parts, run_id: UUID) -> bool:
    """Ask that a run end; True if it has ended by that."""
    cancellation = await cancel(service.database, run_id)
    if cancellation is None:
        return False
    await announce(service, [cancellation])
    row = cancellation.ended
    if row is not None and row.thread_id is not None:
        ring = await next_in_thread(service.database, row.thread_id)
        if ring is not None:
            await service.lanes.ring([ring])
    return row is not None


async def announce(service: Parts, cancellations: Sequence[Cancellation]) -> None:
    """Tell followers of the ends, and workers of the wishes.

    Without Redis a worker hears of it with its next beat, and a sweeper tells the end.
    """
    reached(Failpoint.CANCEL_STORED)
    ended = [cancellation.ended for cancellation in cancellations if cancellation.ended is not None]
    for row in ended:
        run_ended(row)
    try:
        if ended:
            await service.event_log.tell_ends(ended, service.settings.log_retention_seconds)
        await tell_workers(service, [told.run_id for told in cancellations if told.ended is None])
    except (RedisError, OSError) as away:
        log.warning("run_cancel.redis_away runs=%d error=%r", len(cancellations), away)


async def tell_workers(service: Parts, run_ids: Sequence[UUID]) -> None:
    """Tell whoever holds these runs that somebody asked to cancel them."""
    pipeline = service.redis.pipeline(transaction=False)
    for run_id in run_ids:
        pipeline.publish(service.settings.names.cancels, str(run_id))
    await pipeline.execute()
