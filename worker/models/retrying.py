"""Ask an unavailable model again: before its first event, a few times, with full jitter.

A response that has begun is not asked for again here: half an answer is no success, and the next would not go on where
it stopped. Nor is a model asked again whose `Retry-After` is longer than the run's time. A `FallbackModel` is asked
again as a whole, once all its models have failed and as soon as one of them may be asked.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from pydantic_ai.exceptions import (
    ContentFilterError,
    FallbackExceptionGroup,
    ModelAPIError,
    ModelQuotaExceededError,
    OutputTokenLimitExceeded,
    UnexpectedModelBehavior,
)
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import RunContext

from agent_relay.worker.models.errors import for_operator, is_rejected

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0


class RetryingModel(WrapperModel):
    """A model that is asked up to `tries` times, until the time `give_up_at` of the loop's clock."""

    def __init__(self, wrapped: Model, tries: int, give_up_at: float = math.inf) -> None:
        super().__init__(wrapped)
        self._tries = tries
        self._give_up_at = give_up_at

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Stream as the wrapped model does, once it does."""
        tried = 0
        while True:
            stack = AsyncExitStack()
            try:
                with _as_trouble_of(self.model_name):
                    response = await stack.enter_async_context(
                        super().request_stream(messages, model_settings, model_request_parameters, run_context)
                    )
            except (ModelAPIError, FallbackExceptionGroup) as error:
                tried += 1
                pause = _pause(error, tried)
                if tried >= self._tries or pause is None:
                    raise
                if asyncio.get_running_loop().time() + pause >= self._give_up_at:
                    raise
                log.warning("retrying.model tried=%d pause=%.1f error=%s", tried, pause, for_operator(error))
                await asyncio.sleep(pause)
                continue
            async with stack:
                yield response
            return


@contextmanager
def _as_trouble_of(model_name: str) -> Generator[None]:
    """Take an answer that is none, as the empty one of a proxy, for the trouble of a provider that it is."""
    try:
        yield
    except (ContentFilterError, OutputTokenLimitExceeded):
        raise
    except UnexpectedModelBehavior as error:
        raise ModelAPIError(model_name, str(error), body=error.body) from error


def _pause(error: Exception, tried: int) -> float | None:
    """Say how long to wait, at least as long as the provider asks for; None where it makes no sense."""
    if isinstance(error, FallbackExceptionGroup):
        pauses = [_pause(of_one, tried) for of_one in error.exceptions]
        return min((pause for pause in pauses if pause is not None), default=None)
    if not isinstance(error, ModelAPIError) or isinstance(error, ModelQuotaExceededError) or is_rejected(error):
        return None
    asked: float = getattr(error, "retry_after", None) or 0
    jitter = random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (tried - 1)))  # noqa: S311
    return None if asked > LONGEST_PAUSE_SECONDS else asked + jitter
