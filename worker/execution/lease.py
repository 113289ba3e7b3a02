"""The worker's lease and the heartbeat that renews it, in a thread with a connection of its own.

A blocked event loop does not lose the lease. If the database is away, the lease is lost once the last heartbeat is a
lease ago: then the worker stops its attempts. It never goes on under an id that was declared dead.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, LiteralString, cast
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from agent_relay.shared import logs
from agent_relay.shared.clock import new_id
from agent_relay.shared.database import CONNECT_TIMEOUT_SECONDS, leave_out_values, parameters_of, settle
from agent_relay.shared.runs.heartbeat import MARK_PUBLISHED, RETURN_TO_QUEUE, RUNS_OF_WORKER, STORE_PARTIALS
from agent_relay.shared.settings import Settings
from agent_relay.worker.execution.kept_partials import Held, Kept, PartialsToKeep
from agent_relay.worker.guests.guard import EXIT_STATUS, end_process

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
_LIMIT = "SELECT set_config('statement_timeout', %s, true)"
"""A pooler takes no parameter for it, and passes a connection on with the settings of a session."""
STATEMENT_SECONDS = 2.0
"""Time limit of a statement. A statement that the lease does not depend on has a sixth of the lease at most: three such
statements, however slow, leave time for the next renewal."""
UNREGISTERED_SECONDS = 1.0
HANGING_SECONDS = 3.0
"""Timeout on the client's side, above the server's `statement_timeout`: the server does not answer at all."""


class _Connection(psycopg.Connection[Any]):
    """A connection on which the heartbeat never waits for long."""

    hanging_seconds = HANGING_SECONDS

    def wait(self, gen: Any, *arguments: Any, **_: Any) -> Any:
        """Wait for the server, as psycopg does for every statement, but no longer than that."""
        return super().wait(gen, *arguments, timeout=self.hanging_seconds)

    def ask(self, statement: LiteralString, values: dict[str, Any], seconds: float = STATEMENT_SECONDS) -> list[Any]:
        """Execute a statement, for which the server takes no longer than it may; returns its rows."""
        self.hanging_seconds = seconds + min(seconds, HANGING_SECONDS - STATEMENT_SECONDS)
        try:
            with self.transaction():
                self.execute(_LIMIT, [f"{seconds * 1000:.0f}"])
                cursor = self.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            leave_out_values(error)
            raise


@dataclass(frozen=True, slots=True)
class Row:
    """The data that a heartbeat fetches of a run that this worker holds."""

    run_id: UUID
    attempt: int
    cancel_requested: bool
    last_message: int = 0
    """The `place` of the newest message into it."""


_REGISTER = """
    INSERT INTO workers (id, first_id, pool, host, pid, version, slots, agents, lease_until)
    VALUES (%(id)s, nullif(%(first_id)s, %(id)s), %(pool)s, %(host)s, %(pid)s, %(version)s, %(slots)s, %(agents)s,
            now() + make_interval(secs => %(lease)s))
"""

_BEAT = """
    UPDATE workers SET lease_until = now() + make_interval(secs => %(lease)s), draining = %(draining)s
    WHERE id = %(id)s AND ended_at IS NULL RETURNING id
"""

_END = "UPDATE workers SET ended_at = now(), draining = true WHERE id = %(id)s AND ended_at IS NULL"


class Lease:
    """The right of this process to hold runs."""

    def __init__(
        self,
        settings: Settings,
        version: str,
        *,
        first_id: UUID,
        agents: Sequence[str],
        held: Callable[[], list[Held]],
        told: Callable[[], list[UUID]],
        beat: Callable[[Sequence[Row]], None],
        lost: Callable[[], None],
        in_flight: Callable[[], str] = lambda: "?",
    ) -> None:
        self._settings = settings
        self._version = version
        self._agents = list(agents)
        self._held, self._told, self._on_beat, self._on_lost = held, told, beat, lost
        self._in_flight = in_flight
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._stop = threading.Event()
        self._registered = asyncio.Event()
        self._answered = threading.Event()
        self._answered.set()
        self._asked = 0.0
        self._first_id = first_id
        self._worker_id: UUID | None = None
        self._trusted_until = 0.0
        self._keeping = PartialsToKeep()
        self._step_seconds = min(STATEMENT_SECONDS, settings.lease_seconds / 6)
        self._untold: list[UUID] = []
        self.draining = False

    @property
    def worker_id(self) -> UUID | None:
        """The id to claim under; None while the lease has lapsed."""
        return self._worker_id if monotonic() < self._trusted_until else None

    async def acquire(self) -> None:
        """Start the heartbeat, and wait until the worker is registered."""
        self._thread.start()
        await self._registered.wait()

    async def release(self) -> None:
        """Stop the heartbeat, and end the registration now instead of when the lease runs out; its runs are returned.

        If the worker is not registered by then, this waits for the heartbeat only a moment: the database may be away.
        """
        self._stop.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, None if self._worker_id else UNREGISTERED_SECONDS)

    def _run(self) -> None:
        """Send heartbeats until stopped; an unforeseen error ends the process."""
        try:
            self._beat_until_told()
        except BaseException:
            log.critical("lease.failed worker_id=%s: the process ends", self._worker_id, exc_info=True)
            os._exit(EXIT_STATUS)

    def _beat_until_told(self) -> None:
        connection: _Connection | None = None
        while not self._stop.is_set():
            sent = monotonic()
            try:
                if connection is None:
                    connection = self._connect()
                self._renew(connection)
                self._trusted_until = sent + self._settings.lease_seconds
                self._call(self._registered.set)
                self._exchange(connection)
                pause = max(sent + self._settings.beat_seconds - monotonic(), 0)
            except psycopg.Error as error:
                log.warning("lease.database_away error=%r", error)
                if connection is not None:
                    connection.close()
                connection, pause = None, RETRY_SECONDS
                self._lapse()
            self._stop.wait(pause)
            self._watch_the_loop()
        if connection is not None:
            try:
                self._keep(connection)
                connection.ask(MARK_PUBLISHED, {"ids": self._untold + self._told()})
                with connection.transaction():
                    connection.ask(_END, {"id": self._worker_id})
                    left = connection.ask(RETURN_TO_QUEUE, {"id": self._worker_id})
                for (run_id,) in left:
                    log.warning("lease.left run_id=%s", run_id)
            except psycopg.Error as error:
                log.warning("lease.not_released error=%r", error)
            connection.close()

    def _connect(self) -> _Connection:
        parameters = parameters_of(self._settings.postgres, "agent-relay lease")
        longest = max(CONNECT_TIMEOUT_SECONDS, int(self._settings.lease_seconds / 3))
        parameters["connect_timeout"] = min(int(parameters["connect_timeout"]), longest)
        connection = _Connection.connect(**parameters, autocommit=True)
        try:
            settle(connection)
        except psycopg.Error:
            connection.close()
            raise
        return connection

    def _renew(self, connection: _Connection) -> None:
        """Renew the lease, or register."""
        lease = self._settings.lease_seconds
        renewal = {"id": self._worker_id, "lease": lease, "draining": self.draining}
        if self._worker_id is None or not connection.ask(_BEAT, renewal):
            self._register(connection)

    def _exchange(self, connection: _Connection) -> None:
        """Store what changed, and bring back the runs that are held; the lease does not depend on any of it."""
        for step in (self._mark_told, self._read_held, self._keep):
            try:
                step(connection)
            except psycopg.Error as error:
                if connection.closed or connection.info.transaction_status is not TransactionStatus.IDLE:
                    raise
                log.warning("lease.step_failed step=%s error=%r", step.__name__, error)  # The next one tries again.

    def _mark_told(self, connection: _Connection) -> None:
        self._untold += self._told()
        if self._untold:
            connection.ask(MARK_PUBLISHED, {"ids": self._untold}, self._step_seconds)
            self._untold = []

    def _read_held(self, connection: _Connection) -> None:
        rows = connection.ask(RUNS_OF_WORKER, {"id": self._worker_id}, self._step_seconds)
        self._call(self._on_beat, [Row(*cast("tuple[UUID, int, bool, int]", row)) for row in rows])

    def _register(self, connection: _Connection) -> None:
        """Register; an earlier registration was declared dead while this process was away."""
        worker_id = self._first_id
        if self._worker_id is not None:
            log.error("lease.declared_dead worker_id=%s", self._worker_id)
            self._trusted_until = 0.0
            self._call(self._on_lost)
            worker_id = new_id()
        connection.ask(
            _REGISTER,
            {
                "id": worker_id,
                "first_id": self._first_id,
                "pool": self._settings.pool,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "version": self._version,
                "slots": self._settings.worker_slots,
                "agents": self._agents,
                "lease": self._settings.lease_seconds,
            },
        )
        self._worker_id = worker_id
        logs.name_worker(worker_id)
        log.info("lease.registered worker_id=%s", worker_id)

    def _keep(self, connection: _Connection) -> None:
        """Store the partials and the usage that are due; one that cannot be stored is left out."""
        kept = self._keeping.choose(self._held())
        try:
            self._store(connection, kept)
        except psycopg.OperationalError:  # The server's trouble, not that of one of them.
            raise
        except Exception as error:  # noqa: BLE001  (the driver raises what it likes of values that it cannot send)
            log.warning("lease.keep_failed runs=%d error=%s", len(kept), type(error).__name__)
            for each in kept:
                self._store_alone(connection, each)
        self._keeping.stored(kept)

    def _store_alone(self, connection: _Connection, kept: Kept) -> None:
        try:
            self._store(connection, [kept])
        except psycopg.OperationalError:
            raise
        except Exception:
            log.exception("lease.not_kept run_id=%s", kept.run.run_id)

    def _store(self, connection: _Connection, kept: Sequence[Kept]) -> None:
        if not kept:
            return
        connection.ask(
            STORE_PARTIALS,
            {
                "ids": [each.run.run_id for each in kept],
                "attempts": [each.run.attempt for each in kept],
                "with_text": [each.with_text for each in kept],
                "texts": [each.run.text if each.with_text else None for each in kept],
                "last_entries": [each.run.last_entry for each in kept],
                "usages": [Jsonb(each.run.usage) for each in kept],
            },
            self._step_seconds,
        )

    def _lapse(self) -> None:
        """Past the lease, have the loop stop its runs; a loop that does not answer takes the process with it."""
        if not self._trusted_until or monotonic() < self._trusted_until:
            return
        log.warning("lease.lapsed worker_id=%s", self._worker_id)
        self._trusted_until = 0.0
        answered = threading.Event()
        self._call(self._on_lost)
        self._call(answered.set)
        if not answered.wait(self._settings.lease_seconds):
            end_process("lease.loop_blocked", self._in_flight())

    def _watch_the_loop(self) -> None:
        """End a process whose loop is stuck, so that its runs go on elsewhere before its lease has run out."""
        now = monotonic()
        if self._answered.is_set():
            self._answered.clear()
            self._asked = now
            self._call(self._answered.set)
        elif now - self._asked > self._settings.stuck_loop_seconds:
            end_process("lease.loop_stuck", self._in_flight())

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # The loop has closed: the process is about to end.
            self._stop.set()
