"""Take a query in, ring for a worker, and wait for its end where the caller does."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from api.dependencies import Parts
from api.idempotency import REPLAYED, once
from api.identity import Owner
from api.problems import invalid
from api.resources import NewQuery
from api.run_cancel import announce
from api.run_rows import owned_run
from shared import logs
from shared.failpoints import Failpoint, reached
from shared.idempotency import Key, Repeated
from shared.runs import Query, Strategy, accept
from shared.settings import Settings

log = logging.getLogger(__name__)

LOOK_UP_SECONDS = 1.0
"""How long a caller waits for the look-up of its webhook's host; what takes longer is checked at the connection."""


WARNING = "Warning"
NOT_SERVED = '199 agent-relay "No living worker serves this agent; the query waits for one."'


@dataclass(frozen=True, slots=True)
class Asked:
    """The row of the run that was asked for, and headers that tell whether this call made it, and of its agent."""

    run: Any
    headers: dict[str, str] = field(default_factory=dict[str, str])


async def ask(service: Parts, caller: Owner, new: NewQuery, key: Key | None) -> Asked:
    """Store the query as a run, and ring; once this returns, it will be answered. Of a repeated call, find the run.

    Raises:
        Refused: 422, the deadline is further away than this service allows.
        NotFound: what the key created is gone.
        Refusal: there is no such thread or agent, no worker has served the agent for a while, the thread is busy, the
            queue is full, or a webhook may not go there.
    """
    deadline = new.deadline_s or service.settings.run_deadline_seconds
    check_deadline(service.settings, deadline)
    if new.webhook_url is not None:
        await service.resolver.check(new.webhook_url, seconds=LOOK_UP_SECONDS)
    asked = Query(
        tenant=caller.tenant,
        user_id=caller.user_id,
        thread_id=new.thread_id,
        agent_type=new.agent_type,
        query=new.query,
        deadline_seconds=deadline,
        strategy=new.multitask_strategy or Strategy.ENQUEUE,
        metadata=new.metadata,
        allowed_agents=caller.allowed_agents,
        webhook_url=new.webhook_url,
    )
    try:
        accepted = await once(lambda: accept(service.database, asked, key, service.admission))
    except Repeated as repeated:
        run = await owned_run(service.database, caller, repeated.created)
        return Asked(run, REPLAYED | warned_of(run))
    logs.RUN_ID.set(accepted.run.id)
    log.info("asking.accepted agent=%s thread=%s", accepted.run.agent_type, accepted.run.thread_id)
    reached(Failpoint.RUN_ACCEPTED)
    await service.lanes.ring([accepted.ring])
    reached(Failpoint.RUN_RUNG)
    if accepted.superseded:
        await announce(service, accepted.superseded)
    return Asked(accepted.run, warned_of(accepted.run))


def warned_of(row: Any) -> dict[str, str]:
    """Make the header that warns of a run or a batch which no living worker can take now."""
    return {WARNING: NOT_SERVED} if row.served is False else {}


def check_deadline(settings: Settings, seconds: float) -> None:
    """See that a deadline is none further away than this service allows.

    Raises:
        Refused: 422, it is.
    """
    if seconds > settings.max_run_deadline_seconds:
        raise invalid("/deadline_s", "less_than_equal", f"At most {settings.max_run_deadline_seconds:g} seconds")


async def ended(service: Parts, run: Any, seconds: float) -> bool:
    """Wait until a run has ended and its end is stored; False if it has not within so many seconds."""
    try:
        async with asyncio.timeout(seconds), service.relay.follow(run) as feed:
            while not feed.ended and not service.relay.closing:
                await feed.wait()
            return feed.ended
    except TimeoutError:
        return False
