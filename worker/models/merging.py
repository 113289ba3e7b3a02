"""Merge neighbouring deltas of a model's stream before the agent's machinery sees them.

Nearly all of a token's cost in a worker is that machinery, paid for each event; merged, it is paid for each window.
The first delta goes through at once, and nothing is held back for longer than a window, however long a model pauses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass, replace
from datetime import datetime
from typing import Any

from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    TextPartDelta,
    ThinkingPartDelta,
    ToolCallPartDelta,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import RunContext
from pydantic_ai.usage import RequestUsage

from agent_relay.shared.tasks import stop

SHARED_SECONDS = 0.1
"""The longest window that is the same for all runs."""


class MergingModel(WrapperModel):
    """A model whose streams come in windows."""

    def __init__(self, wrapped: Model, window_seconds: float) -> None:
        super().__init__(wrapped)
        self._window_seconds = window_seconds

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Stream as the wrapped model does, in windows."""
        async with super().request_stream(messages, model_settings, model_request_parameters, run_context) as response:
            yield _Merged(response.model_request_parameters, response, self._window_seconds)


@dataclass
class _Merged(StreamedResponse):
    """A streamed response that hands on merged events; all else is the inner one's."""

    inner: StreamedResponse
    window_seconds: float
    _: KW_ONLY

    def __aiter__(self) -> AsyncIterator[ModelResponseStreamEvent]:
        if self._event_iterator is None:
            self._event_iterator = self._get_event_iterator()
        return self._event_iterator

    async def _get_event_iterator(self) -> AsyncGenerator[ModelResponseStreamEvent]:
        arrived: list[ModelResponseStreamEvent] = []
        news = asyncio.Event()
        pump = asyncio.create_task(self._pump(arrived, news))
        pump.add_done_callback(lambda _: news.set())
        try:
            while not pump.done() or arrived:
                await news.wait()
                news.clear()
                events, arrived[:] = arrived[:], []
                self.final_result_event = self.inner.final_result_event
                for event in events:
                    yield event
                if any(isinstance(event, PartDeltaEvent) for event in events):
                    await asyncio.wait([pump], timeout=seconds_left(self.window_seconds))
                    news.set()
            pump.result()
        finally:
            await stop([pump])

    async def _pump(self, arrived: list[ModelResponseStreamEvent], news: asyncio.Event) -> None:
        """Take the model's events as they come; merge neighbouring deltas of one part."""
        async for event in self.inner:
            if arrived and (merged := _merge(arrived[-1], event)) is not None:
                arrived[-1] = merged
            else:
                arrived.append(event)
                news.set()

    def get(self) -> ModelResponse:
        return self.inner.get()

    @property
    def usage(self) -> RequestUsage:
        return self.inner.usage

    async def cancel(self) -> None:
        await self.inner.cancel()

    @property
    def cancelled(self) -> bool:
        return self.inner.cancelled

    async def close_stream(self) -> None:
        await self.inner.close_stream()

    @property
    def model_name(self) -> str:
        return self.inner.model_name

    @property
    def provider_name(self) -> str | None:
        return self.inner.provider_name

    @property
    def provider_url(self) -> str | None:
        return self.inner.provider_url

    @property
    def timestamp(self) -> datetime:
        return self.inner.timestamp


def seconds_left(window_seconds: float) -> float:
    """Tell how long the window lasts that is open now.

    A short one is the same for all runs, so that they share round trips. Long ones begin at any moment, or all runs
    would want the event loop at once.
    """
    if window_seconds > SHARED_SECONDS:
        return window_seconds
    return window_seconds and window_seconds - asyncio.get_running_loop().time() % window_seconds


def _merge(before: ModelResponseStreamEvent, event: ModelResponseStreamEvent) -> PartDeltaEvent | None:
    """Join two deltas of the same part; None where they are not that."""
    if not isinstance(before, PartDeltaEvent) or not isinstance(event, PartDeltaEvent) or before.index != event.index:
        return None
    match before.delta, event.delta:
        case TextPartDelta(content_delta=first), TextPartDelta(
            content_delta=second, provider_details=None, citations_delta=None
        ):
            return replace(before, delta=replace(before.delta, content_delta=first + second))
        case (
            ThinkingPartDelta(content_delta=str(first)),
            ThinkingPartDelta(
                content_delta=str(second), signature_delta=None, provider_name=None, provider_details=None
            ),
        ):
            return replace(before, delta=replace(before.delta, content_delta=first + second))
        case (
            ToolCallPartDelta(args_delta=str(first)),
            ToolCallPartDelta(args_delta=str(second), tool_name_delta=None, provider_details=None),
        ):
            return replace(before, delta=replace(before.delta, args_delta=first + second))
        case _:
            return None
