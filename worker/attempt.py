"""A claimed run in the hands of its agent: what it may become of, and what is known of it at any moment."""

from __future__ import annotations

import asyncio
import time
from enum import Enum, auto
from typing import Any

from pydantic_ai import CancellationToken, RunUsage

from shared.failures import FailureCode, failure
from shared.metrics import FIRST_PARTIAL_SECONDS, MODEL_REQUESTS, TOKENS
from shared.runs import Claim, Ending
from shared.settings import Settings
from shared.tables import Begun, RunStatus
from worker.answer import Answer
from worker.budget import Budget
from worker.catalog import Offer
from worker.keeping import Held
from worker.publisher import Publisher, Telling
from worker.storable import storable

UNWIND_SECONDS = 5.0
"""How long an agent that was told to stop may take; after that the run ends without it."""


class Stop(Enum):
    """Why an attempt is stopped before its agent has answered; the first reason counts."""

    CANCELLED = auto()
    """The caller no longer wants the answer."""
    DEADLINE = auto()
    """The time of the run is over."""
    STOPPING = auto()
    """The worker stops: another one is to answer."""
    NOT_MINE = auto()
    """The run is somebody else's by now, or may be."""
    DATABASE_AWAY = auto()
    """The service's own database was away when its agent needed it: that is no failure of the run's."""


class Attempt:
    """A claimed run in the hands of its agent."""

    def __init__(self, claimed: Claim, offer: Offer, settings: Settings, publisher: Publisher) -> None:
        self.claimed = claimed
        self.offer = offer
        self.stopped: Stop | None = None
        self._began_at = time.monotonic()
        self.unwound: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once an agent that was told to stop has had its time."""
        self._token = CancellationToken()
        self.telling: Telling = publisher.begin(
            claimed.run_id,
            claimed.attempt,
            ttl_seconds=int(claimed.seconds_left) + settings.log_retention_seconds,
            fenced=lambda: self.stop(Stop.NOT_MINE),
        )
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
            used_before=RunUsage(
                requests=claimed.usage.get("requests", 0),
                input_tokens=claimed.usage.get("input_tokens", 0),
                output_tokens=claimed.usage.get("output_tokens", 0),
            ),
        )

    def stop(self, reason: Stop) -> None:
        """Have the agent stop; asked again, the first reason stays."""
        if self.stopped is None:
            self.stopped = reason
            self._token.cancel()
            asyncio.get_running_loop().call_later(UNWIND_SECONDS, _done, self.unwound)

    @property
    def begun_next(self) -> Begun | None:
        """Why the next attempt begins, where this one is to be followed by another."""
        match self.stopped:
            case Stop.STOPPING:
                return Begun.WORKER_STOPPING
            case Stop.DATABASE_AWAY:
                return Begun.WORKER_LOST
            case _:
                return None

    @property
    def usage(self) -> dict[str, int]:
        """Requests and tokens, those of earlier attempts included."""
        used = self.answer.usage
        counts = {"requests": used.requests, "input_tokens": used.input_tokens, "output_tokens": used.output_tokens}
        return {name: count if isinstance(storable(count), int) else 0 for name, count in counts.items()}

    @property
    def held(self) -> Held:
        """What the next beat stores of it; read from the beat's thread."""
        return Held(self.claimed.run_id, self.claimed.attempt, *self.telling.known, self.usage)

    def count(self) -> None:
        """Count what this attempt used, once its agent has ended, and how long its first partial took."""
        agent, before, used = self.claimed.agent_type, self.claimed.usage, self.usage
        MODEL_REQUESTS.labels(agent).inc(max(used["requests"] - before.get("requests", 0), 0))
        for direction in ("input", "output"):
            tokens = f"{direction}_tokens"
            TOKENS.labels(agent, direction).inc(max(used[tokens] - before.get(tokens, 0), 0))
        if self.telling.first_shown_at is not None:
            FIRST_PARTIAL_SECONDS.labels(agent).observe(self.telling.first_shown_at - self._began_at)

    def ending(self, status: RunStatus, text: str | None, **kept: Any) -> Ending:
        """Say how the run ended, with what is known in any case."""
        return Ending(
            status=status,
            text=text,
            last_entry=self.telling.last_entry,
            usage=self.usage,
            **storable(kept),
        )

    def failed(self, code: FailureCode, message: str | None = None) -> Ending:
        """Say that the run failed."""
        return self.ending(RunStatus.FAILED, self.telling.text, error=failure(code, message))

    def cancelled(self, transcript: str | None = None) -> Ending:
        """Say that the run was cancelled; what was produced is kept."""
        return self.ending(RunStatus.CANCELLED, self.telling.text, transcript=transcript)


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
