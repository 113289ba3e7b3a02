"""Cancel a run: end it at once if nobody holds it, else tell its worker."""

from __future__ import annotations

import logging
from uuid import UUID

from redis.exceptions import RedisError

from api.dependencies import Parts
from shared.runs import cancel, next_in_thread
from shared.runs.cancel import CANCELS

log = logging.getLogger(__name__)


async def cancel_run(service: Parts, run_id: UUID) -> None:
    """Ask that a run end. Without Redis its worker hears of it with the next beat, and its end is told by a sweeper."""
    cancellation = await cancel(service.database, run_id)
    row = cancellation.ended
    try:
        if cancellation.held:
            await service.redis.publish(CANCELS, str(run_id))
        elif row is not None:
            await service.event_log.tell_ends([row], service.settings.log_retention_seconds)
    except (RedisError, OSError) as away:
        log.warning("run_cancel.redis_away run=%s error=%r", run_id, away)
    if row is not None and row.thread_id is not None:
        ring = await next_in_thread(service.database, row.thread_id)
        if ring is not None:
            await service.lanes.ring([ring])
