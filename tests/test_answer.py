"""What the worker demands of a model beside an output that validates: a proper end, and to keep within its limits."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

import pytest
from pydantic_ai import CancellationToken, RunUsage
from pydantic_ai.exceptions import ModelAPIError, UsageLimitExceeded
from pydantic_ai.models.function import FunctionStreamedResponse

from shared.clock import new_id
from shared.event_log import EventLog
from shared.runs import Claim
from shared.settings import Settings
from shared.tables import Begun
from worker import attempt
from worker.answer import Answer
from worker.budget import Budget
from worker.catalog import load
from worker.publisher import Publisher


class Deaf:
    """Whom it does not matter to what is told."""

    def tell(self, event: dict[str, Any]) -> None:
        """Hear nothing."""

    def show(self, text: str) -> None:
        """Hear nothing."""


def answer(agent: str, used_before: RunUsage | None = None, **settings: Any) -> Answer:
    """Have one of the test agents ready to answer."""
    configured: dict[str, Any] = {"database_url": "postgresql://no/where", "redis_url": "redis://nowhere", **settings}
    (offer,) = load(Settings(agents={"it": f"tests.agents:{agent}"}, **configured)).values()
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


@pytest.mark.parametrize(("batch_id", "interval"), [(None, 0.1), (new_id(), 2)])
async def test_partials_that_nobody_waits_for_are_fewer(
    batch_id: UUID | None, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: dict[str, Any] = {}

    def listen(*_: Any, **given: Any) -> None:
        heard.update(given)

    settings = Settings(
        database_url="postgresql://no/where",
        redis_url="redis://nowhere",
        partial_interval_seconds=0.1,
        batch_partial_interval_seconds=2,
        agents={"it": "tests.agents:echo"},
    )
    claimed = Claim(
        run_id=new_id(),
        attempt=1,
        begun=Begun.FIRST,
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
        seconds_left=60,
        batch_id=batch_id,
    )
    monkeypatch.setattr(attempt, "Answer", listen)
    attempt.Attempt(claimed, load(settings)["it"], settings, Publisher(cast("EventLog", None), cast("Any", None)))

    assert heard["partial_interval_seconds"] == interval


async def test_a_provider_that_does_not_say_why_its_stream_ended_has_broken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (await answer("echo").write("hello", [], None)).text == "You said: hello"

    monkeypatch.setattr(FunctionStreamedResponse, "provider_url", "http://provider")
    with pytest.raises(ModelAPIError):
        await answer("echo").write("hello", [], None)

    monkeypatch.setattr(FunctionStreamedResponse, "finish_reason", "stop")
    assert (await answer("echo").write("hello", [], None)).text == "You said: hello"


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
