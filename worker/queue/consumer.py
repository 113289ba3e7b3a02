"""The queue consumer: arq's worker, fed by `BZMPOP` instead of polling. The consumer side of arq.

When there is a free slot, due jobs are handed to one worker at once. Their runs are claimed together, while arq reads
the jobs; a job ends with its run's answer, and a job that cannot be read does not keep its run from being answered. The
sweeper enqueues again a run that was popped and not claimed, so an entry may get lost here but never a run.

`slots.py` returns, for each pop, the queues that it lists. A pop in flight is never cancelled, because its entries
would be lost until swept; it is woken through a key of this worker's own, which stands before the queues.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, cast
from uuid import UUID

from arq import ArqRedis
from arq import worker as arq_worker
from arq.worker import Worker, func

from agent_relay.shared import redis
from agent_relay.shared.away import REDIS_ERRORS, skip_if_redis_away
from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.clock import new_id
from agent_relay.shared.queue import JOB, Lane, dumps, loads, remove_wrong, run_of
from agent_relay.shared.redis import is_wrong_type
from agent_relay.shared.settings import Settings
from agent_relay.shared.tasks import stop
from agent_relay.worker.queue.adaptive_limit import busy_shares
from agent_relay.worker.queue.slots import Shares

log = logging.getLogger(__name__)

POP_MOST = 8
"""Runs that one pop takes and claims together. Larger pops starve idle workers."""
POP_SECONDS = 1
"""How long a pop blocks; no entry waits for the end of a pop."""
BACK_OFF_SECONDS = 0.5
UNWIND_SECONDS = 60
"""arq's own timeout is only a net below the deadline, which ends a run properly."""

logging.getLogger("arq").setLevel(logging.CRITICAL)  # Its lines repeat ours.


class QueueConsumer(Worker):
    """An arq worker whose slots are filled by blocking pops."""

    def __init__(
        self,
        settings: Settings,
        answer: Callable[[Sequence[UUID], Lane], Mapping[UUID, asyncio.Task[None]]],
        may_pop: Callable[[], bool],
    ) -> None:
        """`answer` begins to answer runs that were popped together, each in a task; a run may be left out."""

        async def job(context: dict[Any, Any], *_: Any, **__: Any) -> None:
            answering = self._answering.get(context["job_id"])  # It names the run; the rest of the job is not read.
            if answering is not None:
                with suppress(Exception):  # `_run` logs it.
                    await answering

        super().__init__(
            functions=[func(cast("Any", job), name=JOB)],
            redis_pool=redis.connect(settings, ArqRedis, job_serializer=dumps, job_deserializer=loads),
            handle_signals=False,
            max_jobs=settings.worker_slots,
            job_timeout=max(settings.max_run_deadline_seconds, settings.batch_run_seconds) + UNWIND_SECONDS,
            max_tries=1,
            keep_result=0,
            retry_jobs=False,
            job_serializer=dumps,
            job_deserializer=loads,
        )
        names = settings.names
        # arq has these as constants, and no other way to use a job name of ours.
        arq_worker.job_key_prefix = names.jobs  # pyright: ignore[reportPrivateImportUsage]
        arq_worker.retry_key_prefix = names.tries  # pyright: ignore[reportPrivateImportUsage]
        self._kept = (names.jobs, names.tries)
        """The beginnings of the keys of a job; the others belong to features that are switched off."""
        self._keys = {lane: names.lane(settings.pool, lane) for lane in Lane}
        self._wake_key = names.wake(new_id())
        self._slots = asyncio.Semaphore(settings.worker_slots)
        self._shares = Shares(
            settings.worker_slots, interactive_share=settings.interactive_share, batch_turn=settings.batch_turn
        )
        self._listed: list[Lane] | None = None
        """The lanes of the pop in flight, until it is woken."""
        self._waking: asyncio.Task[None] | None = None
        self._answering: dict[str, asyncio.Task[None]] = {}
        """Answers the runs of the jobs that have slots."""
        self._may_pop = may_pop
        self._answer = answer
        self._ended: list[str] = []
        """Jobs whose keys are to be removed."""
        self._forgetting: asyncio.Task[None] | None = None

    async def main(self) -> None:
        """Hand popped jobs to slots until stopped."""
        looking = asyncio.create_task(self._look_at_the_loop())
        try:
            await self._pop_and_answer()
        finally:
            await stop([looking])
        if self._waking is not None:
            await self._waking

    async def _pop_and_answer(self) -> None:
        while self.allow_pick_jobs:
            await self._slots.acquire()
            popped = await self._pop() if self.allow_pick_jobs and self._may_pop() else None
            if popped is None:
                self._slots.release()
                if not self._may_pop():
                    await asyncio.sleep(BACK_OFF_SECONDS)
                continue
            lane, runs = popped
            for _ in range(len(runs) - 1):
                await self._slots.acquire()  # It is free: no more were popped than are.
            answering = self._answer(list(runs.values()), lane)
            for member, run_id in runs.items():
                self._shares.take(lane)
                task = asyncio.create_task(self._run(member, answering.get(run_id)))
                self.tasks[member] = task
                task.add_done_callback(partial(self._over, lane, member))

    async def _run(self, member: str, answering: asyncio.Task[None] | None) -> None:
        """Let arq run a job, which waits for the answer; it is answered also if arq does not begin the job."""
        if answering is not None:
            self._answering[member] = answering
        try:
            await self.run_job(member, 0)
        except REDIS_ERRORS as away:
            log.warning("doorbell.redis_away job=%s error=%r", member, away)
            await self.finish_job(member)
        except Exception as error:  # noqa: BLE001  (arq's, about what it reads of the job)
            refuse(BadInput.JOB, member, error)
        if answering is None:
            return
        await asyncio.wait([answering])
        error = None if answering.cancelled() else answering.exception()
        if error is not None:  # Whatever it is, the other slots go on.
            log.error("doorbell.job_failed job=%s", member, exc_info=error)

    def stop(self) -> None:
        """Pop no more, even if all slots are taken; popped runs go on."""
        self.allow_pick_jobs = False
        self._slots.release()
        self._wake()

    async def finish_job(self, job_id: str, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Remove what arq keeps of a job, in one round trip with others; the job's slot does not wait for it."""
        self._ended.append(job_id)
        if self._forgetting is None:
            self._forgetting = asyncio.create_task(self._forget(), context=Context())

    async def finish_failed_job(self, job_id: str, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse a job that is missing or cannot be read; its run is answered all the same."""
        refuse(BadInput.JOB, job_id, "missing, unreadable or already tried")
        await self.finish_job(job_id)

    async def close(self) -> None:
        """Leave nothing of the jobs that ended."""
        if self._forgetting is not None:
            await self._forgetting
        await self.pool.aclose(close_connection_pool=True)

    async def _forget(self) -> None:
        while self._ended:
            ended, self._ended = self._ended, []
            with skip_if_redis_away(log, "doorbell.redis_away"):  # They expire by themselves.
                await self.pool.unlink(*(prefix + job_id for job_id in ended for prefix in self._kept))
        self._forgetting = None

    async def _pop(self) -> tuple[Lane, dict[str, UUID]] | None:
        """Wait a moment for entries; takes as many as there is room for, of one queue, and returns runs by member."""
        self._listed = self._shares.lanes()
        lanes = {self._keys[lane]: lane for lane in self._listed}
        most = min(POP_MOST, *(self._shares.room(lane) for lane in self._listed))
        keys = [self._wake_key, *lanes]
        try:
            popping = cast("Awaitable[Any]", self.pool.bzmpop(POP_SECONDS, len(keys), keys, min=True, count=most))
            popped = await popping
        except REDIS_ERRORS as away:
            await self._recover(away, keys)
            return None
        finally:
            self._listed = None
        if popped is None:
            return None
        name, members = cast("tuple[bytes, list[tuple[bytes, bytes]]]", popped)
        lane = lanes.get(name.decode())
        if lane is None:
            return None
        runs = {member.decode(): run_id for member, _ in members if (run_id := _run_of(name, member)) is not None}
        return (lane, runs) if runs else None

    async def _recover(self, away: Exception, keys: Sequence[str]) -> None:
        """After a pop that failed: remove a key that holds no lane, or wait a moment for Redis."""
        if is_wrong_type(away):
            try:
                return await remove_wrong(self.pool, dict.fromkeys(keys, "zset"))
            except REDIS_ERRORS as gone:
                away = gone
        log.warning("doorbell.redis_away error=%r", away)
        await asyncio.sleep(BACK_OFF_SECONDS)
        return None

    async def _look_at_the_loop(self) -> None:
        async for busy in busy_shares():
            self._shares.look(busy)
            self._list_more()

    def _list_more(self) -> None:
        """End the pop in flight if it lists fewer queues than it may."""
        if self._listed is not None and not set(self._shares.lanes()) <= set(self._listed):
            self._wake()

    def _wake(self) -> None:
        """End the pop in flight at once, if there is one; one wake-up is enough."""
        if self._listed is not None:
            self._listed = None
            self._waking = asyncio.create_task(self._ring_myself())

    async def _ring_myself(self) -> None:
        with skip_if_redis_away(log, "doorbell.redis_away"):  # Then the pop returns by itself, a moment later.
            async with self.pool.pipeline() as pipeline:
                pipeline.zadd(self._wake_key, {"": 0})
                pipeline.expire(self._wake_key, POP_SECONDS)
                await pipeline.execute()

    def _over(self, lane: Lane, member: str, _: asyncio.Task[None]) -> None:
        self._slots.release()
        self._shares.free(lane)
        self.tasks.pop(member, None)
        self._answering.pop(member, None)
        self._list_more()


def _run_of(lane: bytes, member: bytes) -> UUID | None:
    try:
        return run_of(member)
    except ValueError:
        refuse(BadInput.QUEUE_ENTRY, lane.decode(), member)
        return None
