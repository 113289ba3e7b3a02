"""The doorbell: arq's worker, rung by `BZPOPMIN` instead of polling. The answering side of arq.

arq keeps its job format and runs the job; when there is a free slot, a due job is handed to one worker at once. What
was popped and not claimed is rung again by the sweeper, so a ring may get lost here but never a run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast
from uuid import UUID

from arq import ArqRedis
from arq.worker import Worker, func
from redis.exceptions import RedisError

from shared import redis
from shared.lanes import JOB, Lane, dumps, key, loads
from shared.settings import Settings

log = logging.getLogger(__name__)

POP_SECONDS = 1
"""How long a pop blocks: nobody is kept waiting by it, and a stop waits for it."""
BACK_OFF_SECONDS = 0.5
UNWIND_SECONDS = 60
"""arq's own timeout is only a net below the deadline, which ends a run properly."""

logging.getLogger("arq").setLevel(logging.ERROR)  # Its lines say nothing that ours do not.


class Doorbell(Worker):
    """An arq worker whose slots are filled by blocking pops."""

    def __init__(
        self, settings: Settings, answer: Callable[[UUID], Awaitable[None]], may_pop: Callable[[], bool]
    ) -> None:
        async def job(_: dict[Any, Any], run_id: str) -> None:
            await answer(UUID(run_id))

        super().__init__(
            functions=[func(cast("Any", job), name=JOB)],
            redis_pool=redis.connect(settings, ArqRedis, job_serializer=dumps, job_deserializer=loads),
            handle_signals=False,
            max_jobs=settings.worker_slots,
            job_timeout=settings.max_run_deadline_seconds + UNWIND_SECONDS,
            max_tries=1,
            keep_result=0,
            retry_jobs=False,
            job_serializer=dumps,
            job_deserializer=loads,
        )
        self._lanes = [key(settings.pool, lane) for lane in Lane]
        self._slots = asyncio.Semaphore(settings.worker_slots)
        self._may_pop = may_pop

    async def main(self) -> None:
        """Hand popped jobs to slots until told to stop."""
        while self.allow_pick_jobs:
            await self._slots.acquire()
            member = await self._pop(self._lanes) if self.allow_pick_jobs and self._may_pop() else None
            if member is None:
                self._slots.release()
                if not self._may_pop():
                    await asyncio.sleep(BACK_OFF_SECONDS)
                continue
            task = asyncio.create_task(self.run_job(member, 0))
            self.tasks[member] = task
            task.add_done_callback(lambda task, member=member: self._over(member, task))

    def stop(self) -> None:
        """Pop no more, even if all slots are taken; what was popped goes on."""
        self.allow_pick_jobs = False
        self._slots.release()

    async def _pop(self, lanes: Sequence[str]) -> str | None:
        """Wait a moment for a ring. Never cancelled in flight: what it has popped would be lost until swept."""
        try:
            popped = await self.pool.bzpopmin(list(lanes), timeout=POP_SECONDS)
        except (RedisError, OSError) as away:
            log.warning("doorbell.redis_away error=%r", away)
            await asyncio.sleep(BACK_OFF_SECONDS)
            return None
        return None if popped is None else cast("tuple[bytes, bytes, float]", popped)[1].decode()

    def _over(self, member: str, task: asyncio.Task[None]) -> None:
        self._slots.release()
        self.tasks.pop(member, None)
        if not task.cancelled() and (error := task.exception()):
            log.error("doorbell.job_failed job=%s", member, exc_info=error)
