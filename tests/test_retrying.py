"""A model that cannot be had just now is asked again, a few times."""

from __future__ import annotations

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests import fake_openai
from worker import retrying
from worker.retrying import RetryingModel


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait no longer than the provider asks for."""
    monkeypatch.setattr(retrying, "FIRST_PAUSE_SECONDS", 0.01)


async def ask(url: str, model: str, tries: int) -> str:
    """Ask the provider's model, with the client's own retries off."""
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        chat = OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client))
        async with Agent(RetryingModel(chat, tries)).run_stream("hello") as result:
            return await result.get_output()


async def test_a_model_that_recovers_is_asked_until_it_does() -> None:
    with fake_openai.running() as url:
        assert "hello" in await ask(url, "flaky-2", tries=3)


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
