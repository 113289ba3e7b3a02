"""The worker, put together: everything is made here and handed on."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared import VERSION, database, redis, runs
from shared.database import is_away
from shared.event_log import EventLog
from shared.lanes import Lane, Lanes
from shared.settings import Settings
from shared.start import until_ready
from shared.sweeper import Sweeper
from shared.tasks import stop
from worker.attempt import Stop
from worker.batch_ends import BatchEnds
from worker.cancels import listen_for_cancels
from worker.catalog import Offer, load
from worker.courier import Courier
from worker.doorbell import Doorbell
from worker.isolation import Isolation
from worker.job import Job
from worker.lease import Lease
from worker.nursery import Nursery
from worker.process_guard import ProcessGuard
from worker.publisher import Publisher
from worker.roster import Roster
from worker.storable import as_json, storable

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
GIVE_BACK_SECONDS = 8.0
"""Time to give the rest back after the drain time; agents that do not stop are left behind before."""

_REGISTER_AGENT = text("""
    INSERT INTO agents (agent_type, pool, description, output_schema, text_output)
    VALUES (:agent_type, :pool, :description, CAST(:output_schema AS jsonb), :text_output)
    ON CONFLICT (agent_type) DO UPDATE SET pool = excluded.pool, description = excluded.description,
        output_schema = excluded.output_schema, text_output = excluded.text_output, registered_at = now()
""")


class App:
    """A worker process: one of many, or one made for a single suspect."""

    def __init__(self, settings: Settings, worker_id: UUID, only: UUID | None, nursery: Nursery | None) -> None:
        self._settings = settings
        self._only = only
        self._clients = AsyncExitStack()
        self._offers = load(settings, self._openai_http)
        of_batches = settings.database_pool_size // 2
        self._database = database.connect(settings, settings.database_pool_size - of_batches)
        self._database_of_batches = database.connect(settings, of_batches)
        """Runs of batches end in crowds: nobody else waits for a connection behind them."""
        self._redis = redis.connect(settings)
        event_log, lanes = EventLog(self._redis, settings.names), Lanes(self._redis, settings.names)
        self._publisher = Publisher(event_log, self._is_mine)
        self._roster = Roster(self._database, lanes, settings.max_crashes)
        self._sweeper = Sweeper(settings, self._database, lanes, event_log)
        self._batch_ends = BatchEnds(self._database, self._redis, lanes)
        self._courier = None if only else Courier(settings, self._database)
        if nursery is not None:
            modules = {type(offer.model).__module__ for offer in self._offers.values() if offer.model}
            nursery.prepare(name for name in modules if name.startswith("pydantic_ai."))  # An agent's may do anything.
        self._isolation = Isolation(settings, self._database, self._sweeper, nursery) if nursery else None
        self._jobs = {
            lane: Job(
                settings,
                engine,
                lanes,
                self._publisher,
                self._roster,
                self._batch_ends,
                self._isolation,
                self._offers,
            )
            for lane, engine in ((Lane.INTERACTIVE, self._database), (Lane.BATCH, self._database_of_batches))
        }
        self._lease = Lease(
            settings,
            VERSION,
            first_id=worker_id,
            agents=() if only else tuple(self._offers),
            held=self._roster.held,
            told=self._roster.told,
            beat=self._roster.beat,
            lost=lambda: self._roster.stop_all(Stop.NOT_MINE),
            in_flight=self._roster.in_flight,
        )
        self._doorbell = Doorbell(settings, self._answer, lambda: self._lease.worker_id is not None)

    async def run(self) -> None:
        """Work until told to stop, or until the only run has ended; then let runs end, and give the rest back."""
        stopping = asyncio.Event()
        guard = ProcessGuard(stop=stopping.set, in_flight=self._roster.in_flight)
        told = asyncio.create_task(stopping.wait())
        beginning = asyncio.create_task(self._begin())
        await _first(told, beginning)
        if not beginning.done():
            await self._close([beginning])
            return
        background = [
            asyncio.create_task(work)
            for work in (
                guard.watch(),
                self._publisher.run(),
                self._batch_ends.run(),
                self._sweeper.run(),
                listen_for_cancels(
                    self._redis,
                    self._settings.names,
                    lambda run_id: self._roster.stop(run_id, Stop.CANCELLED),
                ),
            )
        ]
        if self._courier is not None:
            background.append(asyncio.create_task(self._courier.run()))
        if self._isolation is not None:
            background.append(asyncio.create_task(self._isolation.lost()))
        working = asyncio.create_task(
            self._answer(self._only, Lane.INTERACTIVE) if self._only else self._doorbell.main()
        )
        gc.freeze()  # A look at all that was imported would keep the loop for a tenth of a second, now and then.
        log.info("worker.ready agents=%s slots=%d", ",".join(self._offers), self._settings.worker_slots)
        await _first(told, working, *background)
        await self._drain(working)
        if self._courier is not None:
            await self._courier.close()
        await self._close(background)

    async def _close(self, tasks: list[asyncio.Task[Any]]) -> None:
        """End the tasks and the lease, and leave no connection behind."""
        await stop(tasks)
        await self._lease.release()
        await self._doorbell.close()
        await self._clients.aclose()
        await self._redis.aclose()
        await self._database.dispose()
        await self._database_of_batches.dispose()

    async def _begin(self) -> None:
        """Become known, with the agents, once the database is there; who is made for one run serves none."""
        if self._only is None:
            await self._register()
        await self._lease.acquire()

    async def _register(self) -> None:
        while True:
            await until_ready(self._database)
            try:
                return await _register(self._database, self._settings.pool, self._offers)
            except SQLAlchemyError as error:
                if not is_away(error):
                    raise
                log.warning("worker.database_away error=%r", error)

    def _openai_http(self) -> httpx2.AsyncClient:
        from worker.windowed_client import windowed_client  # noqa: PLC0415  (it takes long: only where it is needed)

        client = windowed_client(self._settings.partial_interval_seconds)
        self._clients.push_async_callback(client.aclose)
        return client

    async def _drain(self, working: asyncio.Task[None]) -> None:
        log.info("worker.draining runs=%d", len(self._roster))
        self._lease.draining = True
        self._doorbell.stop()
        if self._only is None:
            await asyncio.wait([working])  # A pop in flight is not cancelled: what it returns is claimed.
        if self._isolation is not None:
            self._isolation.stop()
        await self._until_idle(self._settings.drain_seconds)
        self._roster.stop_all(Stop.STOPPING)
        await self._until_idle(GIVE_BACK_SECONDS)
        log.info("worker.stopped runs_left=%d", len(self._roster))

    async def _until_idle(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while (self._doorbell.tasks or len(self._roster)) and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)

    async def _answer(self, run_id: UUID, lane: Lane) -> None:
        if (worker_id := self._lease.worker_id) is not None:
            await self._jobs[lane].answer(run_id, worker_id)

    async def _is_mine(self, run_id: UUID, attempt: int) -> bool:
        return await runs.is_mine(self._database, run_id, attempt)


async def _register(engine: AsyncEngine, pool: str, offers: dict[str, Offer]) -> None:
    """Tell the API, by way of the database, which agents this worker serves."""
    async with engine.begin() as connection:
        for offer in offers.values():
            await connection.execute(
                _REGISTER_AGENT,
                {
                    "agent_type": offer.agent_type,
                    "pool": pool,
                    "description": storable(offer.description),
                    "output_schema": as_json(storable(offer.output_schema)),
                    "text_output": offer.text_output,
                },
            )


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Wait until the first of them is done; one that failed fails the process."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
