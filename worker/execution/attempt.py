"""One execution of a claimed run, and its state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from enum import Enum, auto
from functools import partial
from typing import Any

from pydantic_ai import CancellationToken, RunUsage
from pydantic_ai.exceptions import RunTimedOut

from agent_relay.shared.database.tables import AttemptReason, RunStatus
from agent_relay.shared.failure_codes import FailureCode, failure
from agent_relay.shared.metrics import COST, FIRST_PARTIAL_SECONDS, MODEL_REQUESTS, TOKENS
from agent_relay.shared.runs.claim import Claim, IntoRun
from agent_relay.shared.runs.finish import Ending
from agent_relay.shared.runs.steps import FinishedSteps
from agent_relay.shared.settings import Settings
from agent_relay.worker.catalog import RegisteredAgent
from agent_relay.worker.execution.answer import Answer, RunIds, counts_of
from agent_relay.worker.execution.files import RunFiles
from agent_relay.worker.execution.inbox import Inbox
from agent_relay.worker.execution.kept_partials import Held
from agent_relay.worker.execution.publisher import EventWriter, Publisher
from agent_relay.worker.execution.reasoning import Reasoning
from agent_relay.worker.execution.size_limits import Budget
from agent_relay.worker.execution.steps import NOTHING_KEPT, KeptSteps, StepWriter
from agent_relay.worker.storable import storable

UNWIND_SECONDS = 5.0
"""Time for a stopped agent to end; after that the run ends without it."""


CLOCK_SECONDS = 0.5
"""The largest difference between the clocks that measure a deadline."""


class Stop(Enum):
    """Why an attempt is stopped before its agent has answered; the first reason counts."""

    CANCELLED = auto()
    """The caller no longer wants the answer."""
    DEADLINE = auto()
    """The time of the run is over."""
    STOPPING = auto()
    """The worker stops: another one is to answer."""
    NOT_MINE = auto()
    """The run is another attempt's by now, or may be."""
    DATABASE_AWAY = auto()
    """The service's own database was away when its agent needed it: that is no failure of the run's."""


async def _no_messages(_after: int) -> Sequence[IntoRun]:
    return ()


class Attempt:
    """One execution of a claimed run."""

    def __init__(
        self,
        claimed: Claim,
        offer: RegisteredAgent,
        settings: Settings,
        publisher: Publisher,
        files: RunFiles,
        *,
        kept: KeptSteps = NOTHING_KEPT,
        store: Callable[[FinishedSteps], Awaitable[bool]] | None = None,
        messages: Callable[[int], Awaitable[Sequence[IntoRun]]] = _no_messages,
    ) -> None:
        self.claimed = claimed
        self.kept = kept
        self.offer = offer
        self.files = files
        self.stopped: Stop | None = None
        self._began_at = time.monotonic()
        self.unwound: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the time for a stopped agent to end is over."""
        self._token = CancellationToken()
        self.telling: EventWriter = publisher.begin(
            claimed.run_id,
            claimed.attempt,
            ttl_seconds=int(claimed.seconds_left) + settings.log_retention_seconds,
            fenced=lambda: self.stop(Stop.NOT_MINE),
        )
        self.inbox = Inbox(kept.heard, claimed.last_message, messages, self.telling.flushed)
        self._steps: StepWriter | None = None
        if store is not None and offer.checkpoints:
            fenced = partial(self.stop, Stop.NOT_MINE)
            self._steps = StepWriter(
                claimed, offer.version, settings.max_history_bytes, store, fenced, files.referenced
            )
        self.shows_reasoning = offer.reasoning and claimed.batch_id is None
        self.answer = Answer(
            offer,
            self.telling,
            self._token,
            budget=Budget(settings.max_output_bytes, settings.max_tool_result_bytes),
            partial_interval_seconds=settings.batch_partial_interval_seconds
            if claimed.batch_id
            else settings.partial_interval_seconds,
            tool_event_bytes=settings.tool_event_bytes,
            model_timeout_seconds=settings.model_timeout_seconds,
            model_tries=settings.model_tries,
            seconds_left=claimed.seconds_left,
            used_before=_usage_before(claimed, kept),
            kept=kept,
            steps=self._steps,
            inbox=self.inbox,
            prompt=lambda message: files.prompt(message.query, message.attachments, str(message.place)),
            keep_file=files.shown,
            ids=_ids_of(claimed),
            reasoning=Reasoning(self.telling.think, settings.reasoning_event_bytes, kept.reasoning)
            if self.shows_reasoning
            else None,
        )

    def begin(self) -> None:
        """Publish that the attempt begins, with the steps that it goes on from and the parts that readers have."""
        claimed, kept = self.claimed, self.kept
        started: dict[str, Any] = {"event": "message_started", "reason": claimed.begun}
        if claimed.begun is AttemptReason.ANSWERED:  # So that readers miss it where the log was lost.
            started["after"] = f"{claimed.wait_attempt}-{claimed.last_answer_entry}"
        if kept.count:
            started["steps_kept"] = kept.count
        if kept.reasoning and self.shows_reasoning:
            started["reasoning_kept"] = kept.reasoning
        self.telling.tell(started)

    def leave(self) -> None:
        """Return the run to the queue once the step in hand has finished, if its steps are stored."""
        if self._steps is not None:
            self._steps.leaving = True

    def stop(self, reason: Stop) -> None:
        """Stop the agent; a second call does not change the reason."""
        if self.stopped is None:
            self.stopped = reason
            self._token.cancel()
            asyncio.get_running_loop().call_later(UNWIND_SECONDS, _done, self.unwound)

    def note_deadline(self, error: BaseException) -> None:
        """Note that the agent was stopped by its deadline, which it knows and may notice first."""
        elapsed = time.monotonic() - self._began_at
        if (
            isinstance(error, RunTimedOut)
            and self.stopped is None
            and elapsed > self.claimed.seconds_left - CLOCK_SECONDS
        ):
            self.stopped = Stop.DEADLINE

    @property
    def begun_next(self) -> AttemptReason | None:
        """Why the next attempt begins, where this one is to be followed by another."""
        match self.stopped:
            case Stop.STOPPING:
                return AttemptReason.WORKER_STOPPING
            case Stop.DATABASE_AWAY:
                return AttemptReason.WORKER_LOST
            case _:
                return None

    @property
    def usage(self) -> dict[str, float]:
        """Requests, tokens, calls and cost, those of earlier attempts included."""
        return counts_of(self.answer.usage)

    @property
    def held(self) -> Held:
        """The data for the next heartbeat; read from the heartbeat's thread."""
        return Held(self.claimed.run_id, self.claimed.attempt, *self.telling.known, self.usage)

    def count(self) -> None:
        """Count what this attempt used, once its agent has ended, and how long its first partial took."""
        agent, before, used = self.claimed.agent_type, self.claimed.usage, self.usage
        MODEL_REQUESTS.labels(agent).inc(max(used["requests"] - before.get("requests", 0), 0))
        for direction in ("input", "output"):
            tokens = f"{direction}_tokens"
            TOKENS.labels(agent, direction).inc(max(used[tokens] - before.get(tokens, 0), 0))
        COST.labels(agent).inc(max(used.get("cost_usd", 0) - before.get("cost_usd", 0), 0))
        if self.telling.first_shown_at is not None:
            FIRST_PARTIAL_SECONDS.labels(agent).observe(self.telling.first_shown_at - self._began_at)

    def ending(self, status: RunStatus, text: str | None, **kept: Any) -> Ending:
        """Return the end of the run, with the data that are known in any case."""
        return Ending(
            status=status,
            text=text,
            last_entry=self.telling.last_entry,
            usage=self.usage,
            heard=self.inbox.heard,
            **storable(kept),
        )

    def failed(self, code: FailureCode, message: str | None = None) -> Ending:
        """Say that the run failed."""
        return self.ending(RunStatus.FAILED, self.telling.text, error=failure(code, message))

    def cancelled(self, transcript: str | None = None) -> Ending:
        """Return the end of a cancelled run; its partial output is kept."""
        return self.ending(RunStatus.CANCELLED, self.telling.text, transcript=transcript)


def _ids_of(claimed: Claim) -> RunIds:
    """Say what agents call the run: its conversation is its thread, or itself where it has none."""
    return RunIds(
        run_id=str(claimed.run_id),
        conversation_id=str(claimed.thread_id or claimed.run_id),
        metadata={
            "tenant": claimed.tenant,
            "user": str(claimed.user_id),
            "agent": claimed.agent_type,
            "attempt": claimed.attempt,
        },
    )


def _usage_before(claimed: Claim, kept: KeptSteps) -> RunUsage:
    """Say what earlier attempts used, so that limits hold for the run and not for each attempt."""
    used = claimed.usage
    cost = used.get("cost_usd")
    return RunUsage(
        requests=int(used.get("requests", 0)),
        input_tokens=int(used.get("input_tokens", 0)),
        output_tokens=int(used.get("output_tokens", 0)),
        cache_read_tokens=int(used.get("cache_read_tokens", 0)),
        cache_write_tokens=int(used.get("cache_write_tokens", 0)),
        tool_calls=max(int(used.get("tool_calls", 0)), kept.tool_calls),
        cost=None if cost is None else Decimal(repr(cost)),
    )


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
