"""Submit a query: store it, enqueue it, and wait for its end if the caller does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.attachments import read_attachments
from agent_relay.api.cancellation import Canceller
from agent_relay.api.options import check_options
from agent_relay.api.problems import Refused, invalid
from agent_relay.api.queries import owned_run
from agent_relay.api.requests.idempotency import REPLAYED, once
from agent_relay.api.requests.identity import Owner
from agent_relay.api.schemas import Attachment, NewMessage, NewQuery, SentMessage
from agent_relay.api.streaming.relay import Relay
from agent_relay.shared import logs
from agent_relay.shared.attachments import Attachments
from agent_relay.shared.errors import WebhookRefused
from agent_relay.shared.failpoints import Failpoint, reached
from agent_relay.shared.idempotency import Key, Repeated
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.rows import BatchRow, RunRow
from agent_relay.shared.runs.accept import Accepted, Query, Strategy, accept
from agent_relay.shared.runs.into_run import MessageStatus, Sent, send, state_of_message, steer
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.runs.said import Said
from agent_relay.shared.settings import Settings
from agent_relay.shared.webhooks import Resolver

log = logging.getLogger(__name__)

LOOK_UP_SECONDS = 1.0
"""Time limit for the look-up of a webhook's host; after it, the host is checked at the connection only."""

WARNING = "Warning"
NOT_SERVED = '199 agent-relay "No living worker serves this agent; the query waits for one."'
_NO_FILES = (
    "This token is restricted to some threads, and a file may be of another one: attach its bytes or an address."
)


@dataclass(frozen=True, slots=True)
class Asked:
    """The run, and response headers: whether this call made it, and whether its agent is served."""

    run: RunRow
    headers: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class OwnIds:
    """The ids of a query, for a protocol whose callers choose the ids of threads and messages."""

    user_message_id: UUID
    begins_thread_with: str | None = None
    """The agent that the thread is begun with, where it is not there."""


class Submitter:
    """Takes queries in."""

    def __init__(
        self,
        settings: Settings,
        database: AsyncEngine,
        queue: RunQueue,
        admission: Admission,
        resolver: Resolver,
        canceller: Canceller,
    ) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._admission = admission
        self._resolver = resolver
        self._canceller = canceller

    async def ask(
        self,
        caller: Owner,
        new: NewQuery,
        key: Key | None,
        history: Sequence[Said] = (),
        after_run: UUID | None = None,
        ids: OwnIds | None = None,
    ) -> Asked:
        """Store the query as a run, and enqueue it; after that, it will be answered. A repeated call finds the run.

        `history` has the earlier messages, if the caller holds the conversation; `after_run` is the run of the thread
        that it has to follow directly. With `ids`, the caller's message gets an id that was chosen for it, and the
        thread may be begun with it.

        Raises:
            Refused: 422, the deadline is further away than this service allows; 403, a token allows other threads only.
            NotFound: the run of the key is gone.
            Refusal: there is no such thread or agent, no worker has served the agent for a while, the thread is busy
                or has gone on, the queue is full, or a webhook may not go there.
        """
        asked = replace(await self._query(caller, new, ids), history=history, after_run=after_run)
        try:
            if asked.strategy is Strategy.STEER and asked.replace_from is None:  # It would take that run out.
                return await self._steer(caller, asked, key)
            accepted = await once(lambda: accept(self._database, asked, key, self._admission))
        except Repeated as repeated:
            run = await owned_run(self._database, caller, repeated.created)
            return Asked(run, REPLAYED | warned_of(run))
        await self._enqueue(accepted)
        return Asked(accepted.run, warned_of(accepted.run))

    async def send(
        self, caller: Owner, run_id: UUID, new: NewMessage, key: Key | None
    ) -> tuple[SentMessage, dict[str, str]]:
        """Store a message into a run, and notify its worker; returns it, and headers for whether this call made it.

        Raises:
            NotFound: there is no such run, or the message of the key is gone.
            Refusal: the run has ended and has no thread, it has had too many messages, or as in `ask`.
        """
        asked = Query(
            tenant=caller.tenant,
            user_id=caller.user_id,
            thread_id=None,
            agent_type=None,
            query=new.query,
            attachments=await self._attachments(caller, new.attachments),
            deadline_seconds=self._settings.run_deadline_seconds,
            allowed_agents=caller.allowed_agents,
        )
        try:
            sent = await once(lambda: send(self._database, run_id, asked, key, self._admission))
        except Repeated as repeated:
            state = await state_of_message(self._database, repeated.created)
            return SentMessage(id=state.message_id, status=MessageStatus(state.status), run_id=state.run_id), REPLAYED
        await self._announce(sent)
        status = MessageStatus.PENDING if sent.accepted is None else MessageStatus.QUEUED
        return SentMessage(id=sent.message_id, status=status, run_id=sent.run_id), {}

    async def _steer(self, caller: Owner, asked: Query, key: Key | None) -> Asked:
        """Send a query into the run of its thread that is running, and return that one; without one, ask."""
        try:
            sent = await once(lambda: steer(self._database, asked, key, self._admission))
        except Repeated as repeated:
            state = await state_of_message(self._database, repeated.created)
            return Asked(await owned_run(self._database, caller, state.run_id), REPLAYED)
        await self._announce(sent)
        if sent.accepted is not None:
            return Asked(sent.accepted.run, warned_of(sent.accepted.run))
        return Asked(await owned_run(self._database, caller, sent.run_id))

    async def _announce(self, sent: Sent) -> None:
        if sent.accepted is not None:
            await self._enqueue(sent.accepted)
            return
        reached(Failpoint.MESSAGE_STORED)
        log.info("asking.message run_id=%s place=%d", sent.run_id, sent.place)
        await self._canceller.announce_message(sent.run_id, sent.place or 0)

    async def _query(self, caller: Owner, new: NewQuery, ids: OwnIds | None) -> Query:
        caller.check_thread(new.thread_id)
        deadline = new.deadline_s or self._settings.run_deadline_seconds
        check_deadline(self._settings, deadline)
        if new.webhook_url is not None:
            await self._resolver.check(new.webhook_url, caller.tenant, seconds=LOOK_UP_SECONDS)
        agent_type = new.agent_type if ids is None else ids.begins_thread_with
        if new.options is not None:
            await check_options(self._database, caller, new.options, agent_type=agent_type, thread_id=new.thread_id)
        return Query(
            tenant=caller.tenant,
            user_id=caller.user_id,
            thread_id=new.thread_id,
            agent_type=agent_type,
            query=new.query,
            attachments=await self._attachments(caller, new.attachments),
            user_message_id=None if ids is None else ids.user_message_id,
            begins_thread=ids is not None and ids.begins_thread_with is not None,
            replace_from=new.replace_from,
            deadline_seconds=deadline,
            start_at=new.start_at,
            start_after_seconds=new.start_after_s,
            strategy=new.multitask_strategy or Strategy.ENQUEUE,
            metadata=new.metadata,
            options=new.options,
            allowed_agents=caller.allowed_agents,
            webhook_url=new.webhook_url,
            wait_seconds=new.wait_deadline_s,
        )

    async def _attachments(self, caller: Owner, given: Sequence[Attachment] | None) -> Attachments | None:
        """Read the attachments; addresses are looked up as those of webhooks are.

        Raises:
            Refused: 422, one of them cannot be attached; 403, a token of some threads names a file, which may be of
                another thread.
        """
        if caller.threads is not None and any(each.file_id is not None for each in given or ()):
            raise Refused(403, _NO_FILES, code="token_restricted")
        attachments, errors = read_attachments(self._settings, caller, given)
        for place, each in enumerate(given or () if not errors else ()):
            if each.url is not None:
                try:
                    await self._resolver.check(each.url, caller.tenant, seconds=LOOK_UP_SECONDS)
                except WebhookRefused as refused:
                    raise invalid(f"/attachments/{place}/url", refused.code, str(refused)) from None
        if errors:
            raise Refused(422, "The request is not valid.", errors=errors)
        return attachments

    async def _enqueue(self, accepted: Accepted) -> None:
        logs.RUN_ID.set(accepted.run.id)
        reached(Failpoint.RUN_ACCEPTED)
        log.info("asking.accepted agent=%s thread=%s", accepted.run.agent_type, accepted.run.thread_id)
        if accepted.ring is not None:
            await self._queue.ring([accepted.ring], in_thread=accepted.run.thread_id)
        reached(Failpoint.RUN_RUNG)
        if accepted.superseded:
            await self._canceller.announce(accepted.superseded)


def warned_of(row: RunRow | BatchRow) -> dict[str, str]:
    """Make the header that warns of a run or a batch which no living worker can take now."""
    return {WARNING: NOT_SERVED} if row.served is False else {}


def check_deadline(settings: Settings, seconds: float) -> None:
    """See that a deadline is none further away than this service allows.

    Raises:
        Refused: 422, it is.
    """
    if seconds > settings.max_run_deadline_seconds:
        raise invalid("/deadline_s", "less_than_equal", f"At most {settings.max_run_deadline_seconds:g} seconds")


async def ended(relay: Relay, run: RunRow, seconds: float, *, or_waits: bool = False) -> bool:
    """Wait until a run has ended and its end is stored; False if it has not within this time.

    With `or_waits`, also until it waits for answers.
    """
    try:
        async with asyncio.timeout(seconds), relay.follow(run) as feed:
            while not feed.ended and not relay.closing and not (or_waits and feed.waits):
                await feed.wait()
            return feed.ended
    except TimeoutError:
        return False
