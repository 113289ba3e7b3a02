"""A model that cannot be had just now is asked again, a few times."""

from __future__ import annotations

import asyncio
import math
import re

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.exceptions import FallbackExceptionGroup, ModelAPIError
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from agent_relay.worker.models import retrying
from agent_relay.worker.models.retrying import RetryingModel
from tests.support import fake_openai


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait no longer than the provider asks for."""
    monkeypatch.setattr(retrying, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(fake_openai, "RETRY_AFTER_SECONDS", 0)


async def ask(url: str, *models: str, tries: int, give_up_at: float = math.inf) -> str:
    """Ask the provider's model, with the client's own retries off; of several, one after the other."""
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        chats = [OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client)) for model in models]
        model = FallbackModel(*chats) if len(chats) > 1 else chats[0]
        async with Agent(RetryingModel(model, tries, give_up_at)).run_stream("hello") as result:
            return await result.get_output()


async def test_a_model_that_recovers_is_asked_until_it_does_and_no_sooner_than_it_says(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_openai, "RETRY_AFTER_SECONDS", 1)
    with fake_openai.running() as url:
        assert "hello" in await ask(url, "flaky-2", tries=3)

    pauses = [float(pause) for pause in re.findall(r"pause=(\S+)", caplog.text)]
    assert len(pauses) == 2
    assert min(pauses) >= fake_openai.RETRY_AFTER_SECONDS


async def test_a_model_that_does_not_recover_is_given_up() -> None:
    with fake_openai.running() as url, pytest.raises(ModelAPIError):
        await ask(url, "flaky-3", tries=3)


@pytest.mark.parametrize("model", ["http-401", "http-404", "http-400"])
async def test_a_refusal_is_final(model: str, caplog: pytest.LogCaptureFixture) -> None:
    with fake_openai.running() as url, pytest.raises(ModelAPIError):
        await ask(url, model, tries=3)

    assert "retrying.model" not in caplog.text


async def test_what_has_begun_is_not_begun_again(caplog: pytest.LogCaptureFixture) -> None:
    with fake_openai.running() as url, pytest.raises(ModelAPIError):
        await ask(url, "cut", tries=3)

    assert "retrying.model" not in caplog.text


async def test_a_model_that_asks_for_more_time_than_there_is_is_given_up_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_openai, "RETRY_AFTER_SECONDS", 25)
    with fake_openai.running() as url, pytest.raises(ModelAPIError):
        await ask(url, "flaky-3", tries=3, give_up_at=asyncio.get_running_loop().time() + 20)

    assert "retrying.model" not in caplog.text


async def test_a_model_that_asks_for_far_too_much_time_is_given_up_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_openai, "RETRY_AFTER_SECONDS", math.ceil(retrying.LONGEST_PAUSE_SECONDS) + 1)
    with fake_openai.running() as url, pytest.raises(ModelAPIError):
        await ask(url, "flaky-3", tries=3)

    assert "retrying.model" not in caplog.text


async def test_who_asks_again_does_so_at_any_time_up_to_one_that_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or all who were refused at once would be back at once."""
    drawn: list[tuple[float, float]] = []

    def draw(shortest: float, longest: float) -> float:
        drawn.append((shortest, longest))
        return shortest

    monkeypatch.setattr(retrying.random, "uniform", draw)
    monkeypatch.setattr(retrying, "LONGEST_PAUSE_SECONDS", 0.05)
    with fake_openai.running() as url, pytest.raises(ModelAPIError):
        await ask(url, "http-500", tries=5)

    assert drawn[:4] == [(0, pytest.approx(longest)) for longest in (0.01, 0.02, 0.04, 0.05)]


async def test_where_one_model_refuses_the_next_is_asked_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with fake_openai.running() as url:
        assert "hello" in await ask(url, "http-401", "bank", tries=3)

    assert "retrying.model" not in caplog.text


async def test_where_all_models_fail_all_are_asked_again() -> None:
    with fake_openai.running() as url:
        assert "hello" in await ask(url, "http-401", "flaky-2", tries=3)


async def test_where_all_models_refuse_none_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    with fake_openai.running() as url, pytest.raises(FallbackExceptionGroup):
        await ask(url, "http-401", "http-404", tries=3)

    assert "retrying.model" not in caplog.text
