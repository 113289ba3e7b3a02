"""Cancel a run: end it at once if no worker holds it, else notify its worker."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.away import skip_if_redis_away
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.failpoints import Failpoint, reached
from agent_relay.shared.metrics import run_ended
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.cancel import Cancellation, cancel
from agent_relay.shared.runs.finish import next_in_thread
from agent_relay.shared.settings import Settings

log = logging.getLogger(__name__)


class Canceller:
    """Cancels runs."""

    def __init__(
        self, settings: Settings, database: AsyncEngine, redis: Redis, queue: RunQueue, event_log: EventLog
    ) -> None:
        self._database = database
        self._redis = redis
        self._queue = queue
        self._event_log = event_log
        self._log_seconds = settings.log_retention_seconds
        self._channel = settings.names.cancels

    async def cancel(self, run_id: UUID) -> bool:
        """Ask that a run end; True if it has ended by that."""
        cancellation = await cancel(self._database, run_id)
        if cancellation is None:
            return False
        await self.announce([cancellation])
        row = cancellation.ended
        if row is not None and row.thread_id is not None:
            ring = await next_in_thread(self._database, row.thread_id)
            if ring is not None:
                await self._queue.ring([ring])
        return row is not None

    async def announce(self, cancellations: Sequence[Cancellation]) -> None:
        """Publish the ends to followers, and the requests to cancel to workers.

        Without Redis, the next heartbeat brings the request to the worker, and a sweeper publishes the end.
        """
        reached(Failpoint.CANCEL_STORED)
        ended = [cancellation.ended for cancellation in cancellations if cancellation.ended is not None]
        for row in ended:
            run_ended(row)
        with skip_if_redis_away(log, "run_cancel.redis_away runs=%d", len(cancellations)):
            if ended:
                await self._event_log.tell_ends(ended, self._log_seconds)
            await self.tell_workers([told.run_id for told in cancellations if told.ended is None])

    async def announce_message(self, run_id: UUID, last: int) -> None:
        """Announce the number of the last message into a run to its worker; else the heartbeat reads it."""
        with skip_if_redis_away(log, "run_cancel.redis_away runs=1"):
            await self._redis.publish(self._channel, f"{run_id} {last}")

    async def tell_workers(self, run_ids: Sequence[UUID]) -> None:
        """Publish to the workers that hold these runs that a cancel was requested."""
        pipeline = self._redis.pipeline(transaction=False)
        for run_id in run_ids:
            pipeline.publish(self._channel, str(run_id))
        await pipeline.execute()
