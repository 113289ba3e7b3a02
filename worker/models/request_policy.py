"""How each model request of a run is made, whichever model the agent, its capabilities or `MODEL` choose for it.

pydantic-ai asks a capability to wrap the model that serves a request; so no choice of an agent is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings, merge_model_settings
from pydantic_ai.tools import RunContext

from agent_relay.worker.models.merging import MergingModel
from agent_relay.worker.models.retrying import RetryingModel
from agent_relay.worker.models.unstreamed import UnstreamedModel


@dataclass
class RequestPolicy(AbstractCapability[Any]):
    """Wraps the model of each request: our settings, further tries, models that cannot stream, and windows."""

    settings: ModelSettings
    """Settings that hold if neither the agent nor the model sets them."""
    tries: int
    give_up_at: float
    """On the loop's clock: no further try begins after it."""
    window_seconds: float
    model: Model | str | None = None
    """The model of an agent without one, unless one of its own capabilities chooses one."""
    failed: bool = field(default=False, init=False)
    """Whether the newest request failed; the agent's own code may raise a model's errors, too."""

    def get_ordering(self) -> CapabilityOrdering:
        """Stand before the agent's capabilities, so that a model chosen by one of them counts."""
        return CapabilityOrdering(position="outermost")

    def get_model(self) -> Model | str | None:
        """Offer a model; the last capability to choose one wins, and this is the first."""
        return self.model

    def get_wrapper_model(self, model: Model) -> Model:
        """Wrap the model that serves a request."""
        demand_finish_reasons(model)
        unstreamed = UnstreamedModel(_DefaultSettings(model, self.settings), model)
        merging = MergingModel(RetryingModel(unstreamed, self.tries, self.give_up_at), self.window_seconds)
        return _Watched(merging, self)


class _Watched(WrapperModel):
    """A model whose policy records whether the newest request failed."""

    def __init__(self, wrapped: Model, policy: RequestPolicy) -> None:
        super().__init__(wrapped)
        self._policy = policy

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Stream as the wrapped model does."""
        try:
            async with super().request_stream(
                messages, model_settings, model_request_parameters, run_context
            ) as response:
                yield response
        except BaseException:
            self._policy.failed = True
            raise


class _DefaultSettings(WrapperModel):
    """A model with settings that hold if neither the agent nor the model sets them."""

    def __init__(self, wrapped: Model, settings: ModelSettings) -> None:
        super().__init__(wrapped)
        own = {key for leaf in _leaves(wrapped) for key in leaf.settings or ()}
        self._defaults = cast("ModelSettings", {key: value for key, value in settings.items() if key not in own})

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask the wrapped model."""
        return await super().request(messages, self._filled(model_settings), model_request_parameters)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Stream as the wrapped model does."""
        settings = self._filled(model_settings)
        async with super().request_stream(messages, settings, model_request_parameters, run_context) as response:
            yield response

    def _filled(self, settings: ModelSettings | None) -> ModelSettings | None:
        return merge_model_settings(self._defaults, settings)


def _leaves(model: Model) -> Iterator[Model]:
    """List the models behind a model that only chooses among others or wraps one."""
    match model:
        case FallbackModel(models=models):
            for one in models:
                yield from _leaves(one)
        case WrapperModel(wrapped=wrapped):
            yield from _leaves(wrapped)
        case _:
            yield model


def demand_finish_reasons(model: Model) -> None:
    """Let models of OpenAI's Chat Completions distinguish a stream that was cut from a whole one.

    A model whose server never sends a finish reason can be given a profile for that.
    """
    spoken: Any = sys.modules.get("pydantic_ai.models.openai")
    if spoken is None:
        return  # Whoever made such a model imported it.
    for leaf in _leaves(model):
        if isinstance(leaf, spoken.OpenAIChatModel):
            profile: Any = leaf.profile
            profile.setdefault("openai_chat_streaming_requires_finish_reason", True)
