"""The worker, put together: everything is made here and handed on."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared import VERSION, database, redis
from agent_relay.shared.away import repeat_while_away
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.maintenance.sweeper import Sweeper
from agent_relay.shared.queue import Lane, RunQueue
from agent_relay.shared.runs.claim import is_mine
from agent_relay.shared.settings import Settings
from agent_relay.shared.startup_checks import until_ready
from agent_relay.shared.tasks import stop
from agent_relay.worker.catalog import RegisteredAgent, load
from agent_relay.worker.execution.attempt import Stop
from agent_relay.worker.execution.batch_progress import BatchEndNotifier
from agent_relay.worker.execution.cancellations import listen_for_cancels
from agent_relay.worker.execution.entered_agents import EnteredAgents
from agent_relay.worker.execution.in_flight import RunsInFlight
from agent_relay.worker.execution.job import Job
from agent_relay.worker.execution.lease import Lease
from agent_relay.worker.execution.publisher import Publisher
from agent_relay.worker.guests.guard import ProcessGuard
from agent_relay.worker.processes.quarantine import Quarantine
from agent_relay.worker.processes.spawner import Spawner
from agent_relay.worker.queue.consumer import QueueConsumer
from agent_relay.worker.storable import as_json, storable
from agent_relay.worker.webhooks import WebhookSender

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
POLL_SECONDS = 0.05
GIVE_BACK_SECONDS = 8.0
"""Time to give the rest back after the drain time; agents that do not stop are left behind before."""

_REGISTER_AGENT = text("""
    INSERT INTO agents (agent_type, pool, description, output_schema, text_output, examples, tool_events,
        reasoning, options_schema, attachments, waiting)
    VALUES (:agent_type, :pool, :description, CAST(:output_schema AS jsonb), :text_output, CAST(:examples AS text[]),
            :tool_events, :reasoning, CAST(:options_schema AS jsonb), CAST(:attachments AS jsonb), :waiting)
    ON CONFLICT (agent_type) DO UPDATE SET pool = excluded.pool, description = excluded.description,
        output_schema = excluded.output_schema, text_output = excluded.text_output, examples = excluded.examples,
        tool_events = excluded.tool_events, reasoning = excluded.reasoning,
        options_schema = excluded.options_schema, attachments = excluded.attachments, waiting = excluded.waiting,
        registered_at = now()
""")


class App:
    """A worker process: one of many, or one made for a single suspect."""

    def __init__(self, settings: Settings, worker_id: UUID, only: UUID | None, nursery: Spawner | None) -> None:
        self._settings = settings
        self._only = only
        self._clients = AsyncExitStack()
        self._offers = load(settings, self._openai_http)
        of_batches = settings.database_pool_size // 2
        self._database = database.connect(settings, settings.database_pool_size - of_batches)
        self._database_of_batches = database.connect(settings, of_batches)
        """Many runs of batches end at once: other runs do not wait for a connection behind them."""
        self._databases_of_agents = {
            Lane.INTERACTIVE: self._of_agents(self._database, settings.database_pool_size - of_batches),
            Lane.BATCH: self._of_agents(self._database_of_batches, of_batches),
        }
        self._redis = redis.connect(settings)
        event_log, lanes = EventLog(self._redis, settings.names), RunQueue(self._redis, settings.names)
        self._publisher = Publisher(event_log, self._is_mine)
        self._roster = RunsInFlight(self._database, lanes, settings.max_crashes)
        self._stopping = asyncio.Event()
        self._guard = ProcessGuard(stop=self._stopping.set, in_flight=self._roster.in_flight)
        self._sweeper = Sweeper(settings, self._database, lanes, event_log)
        self._batch_ends = BatchEndNotifier(self._database, self._redis, lanes)
        self._courier = None if only else WebhookSender(settings, self._database)
        if nursery is not None:
            modules = {type(offer.model).__module__ for offer in self._offers.values() if offer.model}
            nursery.prepare(name for name in modules if name.startswith("pydantic_ai."))  # An agent's may do anything.
        self._isolation = Quarantine(settings, self._database, self._sweeper, nursery) if nursery else None
        self._entered = EnteredAgents(settings.agent_ready_seconds)
        self._jobs = {
            lane: Job(
                settings,
                engine,
                self._databases_of_agents[lane],
                lanes,
                self._publisher,
                self._roster,
                self._batch_ends,
                self._isolation,
                self._offers,
                self._entered,
                self._guard.look,
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
        self._doorbell = QueueConsumer(settings, self._answer, lambda: self._lease.worker_id is not None)

    async def run(self) -> None:
        """Work until stopped, or until the only run has ended; then let runs end, and return the rest to the queue."""
        told = asyncio.create_task(self._stopping.wait())
        beginning = asyncio.create_task(self._begin())
        await _first(told, beginning)
        if not beginning.done():
            await self._close([beginning])
            return
        background = [
            asyncio.create_task(work)
            for work in (
                self._guard.watch(),
                self._publisher.run(),
                self._batch_ends.run(),
                self._sweeper.run(),
                listen_for_cancels(
                    self._redis,
                    self._settings.names,
                    lambda run_id: self._roster.stop(run_id, Stop.CANCELLED),
                    self._roster.expect_messages,
                ),
            )
        ]
        if self._courier is not None:
            background.append(asyncio.create_task(self._courier.run()))
        if self._isolation is not None:
            background.append(asyncio.create_task(self._isolation.lost()))
        working = asyncio.create_task(self._answer_one(self._only) if self._only else self._doorbell.main())
        gc.freeze()  # A look at all that was imported would keep the loop for a tenth of a second, now and then.
        log.info("worker.ready agents=%s slots=%d", ",".join(self._offers), self._settings.worker_slots)
        try:
            await _first(told, working, *background)
        except BaseException as error:
            log.critical("worker.failed error=%r in_flight=%s", error, self._roster.in_flight())
            raise
        await self._drain(working)
        if self._courier is not None:
            await self._courier.close()
        await self._close(background)

    async def _close(self, tasks: list[asyncio.Task[Any]]) -> None:
        """End the tasks and the lease, and leave no connection behind."""
        await stop(tasks)
        await self._lease.release()
        await self._doorbell.close()
        await self._entered.close()
        await self._clients.aclose()
        await self._redis.aclose()
        for engine in {self._database, self._database_of_batches, *self._databases_of_agents.values()}:
            await engine.dispose()

    def _of_agents(self, ours: AsyncEngine, connections: int) -> AsyncEngine:
        """Make what agents get: connections of their own role, or ours where none is set."""
        server = self._settings.postgres_of_agents
        return ours if server is None else database.connect(self._settings, connections, server)

    async def _begin(self) -> None:
        """Register, with the agents, once the database is there; a process for one run registers none."""
        if self._only is None:
            if self._settings.postgres_of_agents is None:
                log.warning("worker.agents_reach_all: agents can read the service's tables; set AGENT_DATABASE_URL")
            await self._register()
        await self._lease.acquire()

    async def _register(self) -> None:
        async def register() -> None:
            await until_ready(self._database)
            await _register(self._database, self._settings.pool, self._offers)

        await repeat_while_away(register, log, "worker.database_away", pause_seconds=RETRY_SECONDS)

    def _openai_http(self) -> httpx2.AsyncClient:
        from agent_relay.worker.models.openai_client import windowed_client  # noqa: PLC0415  (it takes long: only where it is needed)

        client = windowed_client(self._settings.partial_interval_seconds)
        self._clients.push_async_callback(client.aclose)
        return client

    async def _drain(self, working: asyncio.Task[None]) -> None:
        log.info("worker.draining runs=%d", len(self._roster))
        self._lease.draining = True
        self._doorbell.stop()
        if self._only is None:
            await asyncio.wait([working])  # A pop in flight is not cancelled: its runs are claimed.
        if self._isolation is not None:
            self._isolation.stop()
        self._roster.leave_all()
        await self._until_idle(self._settings.drain_seconds)
        self._roster.stop_all(Stop.STOPPING)
        await self._until_idle(GIVE_BACK_SECONDS)
        log.info("worker.stopped runs_left=%d", len(self._roster))

    async def _until_idle(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while (self._doorbell.tasks or len(self._roster)) and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)

    def _answer(self, run_ids: Sequence[UUID], lane: Lane) -> Mapping[UUID, asyncio.Task[None]]:
        worker_id = self._lease.worker_id
        return {} if worker_id is None else self._jobs[lane].answer(run_ids, worker_id)

    async def _answer_one(self, run_id: UUID) -> None:
        for answering in self._answer([run_id], Lane.INTERACTIVE).values():
            await answering

    async def _is_mine(self, run_id: UUID, attempt: int) -> bool:
        return await is_mine(self._database, run_id, attempt)


async def _register(engine: AsyncEngine, pool: str, offers: dict[str, RegisteredAgent]) -> None:
    """Store in the database, for the API, which agents this worker serves."""
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
                    "examples": storable(list(offer.examples)),
                    "tool_events": offer.tool_events,
                    "reasoning": offer.reasoning,
                    "attachments": as_json(list(offer.attachments)),
                    "waiting": offer.waiting,
                    "options_schema": offer.options and as_json(storable(offer.options.schema)),
                },
            )


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Wait until the first of them is done; one that failed fails the process."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
