"""Makes the runs of schedules: a process of the API each, any number of them, and exactly one run a tick.

The schedule's row is locked while its run is stored and its next tick is written, in one transaction: a process that
dies over it leaves the tick to another one. That there is one run a tick, an index holds as well.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.api.cancellation import Canceller
from agent_relay.api.requests.key_cache import KeyCache
from agent_relay.api.schedules.cron import next_times
from agent_relay.api.schedules.rows import ScheduleRow
from agent_relay.shared.api_keys import ApiKey
from agent_relay.shared.bad_input import failed
from agent_relay.shared.database import is_away, transact
from agent_relay.shared.database.typed_rows import columns, read_one
from agent_relay.shared.errors import (
    AgentNotServed,
    BudgetExhausted,
    NotFound,
    QueueFull,
    Refusal,
    ThreadBusy,
    UnknownAgent,
)
from agent_relay.shared.failpoints import Failpoint, reached
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.accept import Accepted, Query, Strategy, accept_in
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.schemas import metadata_of
from agent_relay.shared.settings import Settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
AGAIN_SECONDS = 10.0
"""Seconds until a tick is tried again that found no room in the queue."""
ASIDE_SECONDS = 60.0
"""Seconds until a schedule is tried again that could not be read or stored."""


@dataclass(frozen=True, slots=True)
class _Due(ScheduleRow):
    """A schedule that is due."""

    now: datetime


_LOOK = text("SELECT EXISTS (SELECT FROM schedules WHERE due_at <= now()) AS due")

_DUE = text(f"""
    SELECT {columns(_Due, now="now()")} FROM schedules
    WHERE due_at <= now() ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED
""")  # noqa: S608  (a constant)

_TICKED = text("""
    UPDATE schedules
    SET next_times = CAST(:next_times AS timestamptz[]), due_at = CAST(:due_at AS timestamptz), paused = :paused,
        last_run_id = coalesce(CAST(:run_id AS uuid), last_run_id), failed_ticks = :failed_ticks,
        error = CAST(:error AS json)
    WHERE id = :id
""")

_ASIDE = text("UPDATE schedules SET due_at = now() + make_interval(secs => :seconds) WHERE id = :id")


@dataclass(frozen=True, slots=True)
class _Refused:
    """Why a tick makes no run."""

    code: str
    message: str
    pauses: bool = False
    """Whether no later tick would make one either."""
    again: bool = False
    """Whether the same tick is tried again."""


_KEY_GONE = _Refused("key_gone", "The key that it was made or changed with is not valid any more.", pauses=True)
NEW_SECONDS = 10.0
"""A key that was made so lately may not have been read yet."""


class Ticker:
    """One process's share of the ticks."""

    def __init__(
        self,
        settings: Settings,
        database: AsyncEngine,
        queue: RunQueue,
        admission: Admission,
        keys: KeyCache,
        canceller: Canceller,
    ) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._admission = admission
        self._keys = keys
        self._canceller = canceller

    async def run(self) -> None:
        """Make the runs of ticks for ever, at a pace that keeps processes out of step."""
        await self._keys.first_read.wait()
        while True:
            try:
                if (await transact(self._database, _LOOK))[0].due:
                    while await self._tick():
                        pass
            except (SQLAlchemyError, OSError) as away:
                log.warning("schedules.database_away error=%r", away)
            except Exception as error:  # noqa: BLE001  (whatever it is, the next look is due)
                failed("schedules", "look", error)
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.75, 1.25))  # noqa: S311

    async def _tick(self) -> bool:
        """Make the run of the oldest tick that no other process works on; False where there is none."""
        schedule: _Due | None = None
        try:
            async with self._database.begin() as connection:
                schedule = read_one(await connection.execute(_DUE), _Due)
                if schedule is None:
                    return False
                outcome = await self._ask(connection, schedule)
                reached(Failpoint.TICK_MADE)
                await connection.execute(_TICKED, _ticked(schedule, outcome))
        except Exception as error:
            if schedule is None or is_away(error):
                raise
            failed("schedules", f"schedule {schedule.id}", error)
            await transact(self._database, _ASIDE, {"id": schedule.id, "seconds": ASIDE_SECONDS})
            return True
        reached(Failpoint.TICK_STORED)
        if isinstance(outcome, _Refused):
            log.warning("schedules.no_run schedule_id=%s code=%s", schedule.id, outcome.code)
            return True
        log.info("schedules.ticked schedule_id=%s run_id=%s", schedule.id, outcome.run.id)
        if outcome.ring is not None:
            await self._queue.ring([outcome.ring], in_thread=outcome.run.thread_id)
        if outcome.superseded:
            await self._canceller.announce(outcome.superseded)
        return True

    async def _ask(self, connection: AsyncConnection, schedule: _Due) -> Accepted | _Refused:
        """Store the run of a tick, or return why there is none."""
        key = self._key_of(schedule)
        if key is None:
            is_new = schedule.now - schedule.updated_at < timedelta(seconds=NEW_SECONDS)
            return replace(_KEY_GONE, pauses=False, again=True) if is_new else _KEY_GONE
        asked = Query(
            tenant=schedule.tenant,
            user_id=schedule.user_id,
            thread_id=schedule.thread_id,
            agent_type=schedule.agent_type,
            query=schedule.query,
            deadline_seconds=schedule.deadline_seconds or self._settings.run_deadline_seconds,
            strategy=Strategy(schedule.multitask_strategy or Strategy.ENQUEUE),
            metadata=metadata_of(schedule.metadata),
            options=schedule.options,
            webhook_url=schedule.webhook_url,
            wait_seconds=schedule.wait_seconds,
            allowed_agents=key.agents,
            schedule_id=schedule.id,
            start_at=schedule.next_times[0],
        )
        try:
            async with connection.begin_nested():
                return await accept_in(connection, asked, None, self._admission)
        except Refusal as refusal:
            return _refused(refusal)

    def _key_of(self, schedule: _Due) -> ApiKey | None:
        """Find the key that a schedule was made with; None once it is not valid any more.

        Raises:
            KeysUnknown: the keys have not been read yet.
        """
        reference = schedule.key_reference
        key = None if reference is None else self._keys.find_by_reference(reference, schedule.tenant)
        return key if key is not None and key.tenant == schedule.tenant else None


def _refused(refusal: Refusal) -> _Refused:
    message = str(refusal)
    match refusal:
        case QueueFull(limit=limit):
            return _Refused(limit, message, again=True)
        case BudgetExhausted():
            return _Refused("budget_exhausted", message)
        case AgentNotServed():
            return _Refused("agent_not_served", message)
        case ThreadBusy():
            return _Refused("thread_busy", message)
        case UnknownAgent():
            return _Refused("unknown_agent", "The key may not ask this agent any more.", pauses=True)
        case NotFound():
            return _Refused("not_found", message, pauses=True)
        case _:
            raise refusal


def _ticked(schedule: _Due, outcome: Accepted | _Refused) -> dict[str, Any]:
    """Return the values to store for a tick."""
    values: dict[str, Any] = {"id": schedule.id, "run_id": None, "paused": False, "error": None, "failed_ticks": 0}
    times: list[datetime] = schedule.next_times
    due_at: datetime | None = schedule.now + timedelta(seconds=AGAIN_SECONDS)
    if isinstance(outcome, _Refused):
        values |= {
            "paused": outcome.pauses,
            "error": to_json({"code": outcome.code, "message": outcome.message}).decode(),
            "failed_ticks": schedule.failed_ticks + (0 if outcome.again else 1),
        }
    else:
        values["run_id"] = outcome.run.id
    if not isinstance(outcome, _Refused) or not outcome.again:
        times = [] if values["paused"] else next_times(schedule.cron, schedule.timezone, schedule.now)
        due_at = times[0] if times else None
    return values | {"next_times": times, "due_at": due_at}
