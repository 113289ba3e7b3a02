"""What the worker demands of a model beside an output that validates: a proper end, and to keep within its limits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from pydantic_ai import CancellationToken, RunUsage
from pydantic_ai.exceptions import ModelAPIError, RunTimedOut, UsageLimitExceeded
from pydantic_ai.models.function import FunctionStreamedResponse

from agent_relay.shared.clock import new_id
from agent_relay.shared.database.tables import AttemptReason
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.runs.claim import Claim
from agent_relay.shared.settings import Settings
from agent_relay.worker.catalog import load
from agent_relay.worker.execution import attempt
from agent_relay.worker.execution.answer import Answer, Answered
from agent_relay.worker.execution.files import RunFiles
from agent_relay.worker.execution.publisher import Publisher
from agent_relay.worker.execution.size_limits import Budget


class Deaf:
    """Whom it does not matter to what is told."""

    def tell(self, event: dict[str, Any]) -> None:
        """Hear nothing."""

    def show(self, text: str) -> None:
        """Hear nothing."""


def answer(agent: str, used_before: RunUsage | None = None, **settings: Any) -> Answer:
    """Have one of the test agents ready to answer."""
    configured: dict[str, Any] = {"database_url": "postgresql://no/where", "redis_url": "redis://nowhere", **settings}
    (offer,) = load(Settings(agents={"it": f"tests.support.agents:{agent}"}, **configured)).values()
    return Answer(
        offer,
        Deaf(),
        CancellationToken(),
        budget=Budget(1 << 20, 1 << 20),
        partial_interval_seconds=0,
        tool_event_bytes=100,
        model_timeout_seconds=5,
        model_tries=1,
        used_before=used_before,
    )


def begun(seconds_left: float = 60, batch_id: UUID | None = None) -> attempt.Attempt:
    """Make the attempt of a run."""
    settings = Settings(
        database_url="postgresql://no/where",
        redis_url="redis://nowhere",
        partial_interval_seconds=0.1,
        batch_partial_interval_seconds=2,
        agents={"it": "tests.support.agents:echo"},
    )
    claimed = Claim(
        run_id=new_id(),
        attempt=1,
        begun=AttemptReason.FIRST,
        tenant="acme",
        user_id=new_id(),
        thread_id=None,
        seq=None,
        agent_type="it",
        query="hello",
        metadata={},
        thread_metadata={},
        message_id=new_id(),
        usage={},
        seconds_left=seconds_left,
        batch_id=batch_id,
    )
    return attempt.Attempt(
        claimed,
        load(settings)["it"],
        settings,
        Publisher(cast("EventLog", None), cast("Any", None)),
        cast("RunFiles", SimpleNamespace(referenced=None, prompt=None, shown=None)),
    )


@pytest.mark.parametrize(("batch_id", "interval"), [(None, 0.1), (new_id(), 2)])
async def test_partials_that_nobody_waits_for_are_fewer(
    batch_id: UUID | None, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: dict[str, Any] = {}

    def listen(*_: Any, **given: Any) -> None:
        heard.update(given)

    monkeypatch.setattr(attempt, "Answer", listen)
    begun(batch_id=batch_id)

    assert heard["partial_interval_seconds"] == interval


@pytest.mark.parametrize(
    ("seconds_left", "error", "stopped"),
    [
        (0, RunTimedOut("late"), attempt.Stop.DEADLINE),
        (60, RunTimedOut("a time of its own"), None),
        (0, TimeoutError("of a tool"), None),
    ],
)
async def test_an_agent_that_meets_the_deadline_first_has_met_it(
    seconds_left: float, error: Exception, stopped: attempt.Stop | None
) -> None:
    begun_attempt = begun(seconds_left)
    begun_attempt.note_deadline(error)

    assert begun_attempt.stopped is stopped


async def text_of(writer: Answer) -> str:
    """Have an answer written to "hello"; returns its text."""
    answered = await writer.write("hello", [], None)
    assert isinstance(answered, Answered)
    return answered.text


async def test_a_provider_that_does_not_say_why_its_stream_ended_has_broken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await text_of(answer("echo")) == "You said: hello"

    monkeypatch.setattr(FunctionStreamedResponse, "provider_url", "http://provider")
    with pytest.raises(ModelAPIError):
        await answer("echo").write("hello", [], None)

    monkeypatch.setattr(FunctionStreamedResponse, "finish_reason", "stop")
    assert await text_of(answer("echo")) == "You said: hello"


async def test_what_earlier_attempts_used_counts_against_the_limits_of_an_agent() -> None:
    again = answer("limited", RunUsage(requests=1, input_tokens=1_000_000))
    with pytest.raises(UsageLimitExceeded):
        await again.write("hello", [], None)

    assert again.usage.requests == 2
    assert again.usage.input_tokens > 1_000_000


@pytest.mark.parametrize("limit", [{"max_requests": 3}, {"max_tokens": 1}, {"max_tool_calls": 2}])
async def test_an_agent_without_limits_of_its_own_has_those_that_are_set(limit: dict[str, int]) -> None:
    unlimited = answer("insatiable", None, **{"max_requests": 0} | limit)
    with pytest.raises(UsageLimitExceeded):
        await unlimited.write("hello", [], None)

    assert unlimited.usage.requests <= 3
