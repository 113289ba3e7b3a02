"""Models that cannot stream, or whose provider refuses to: they are asked for a whole answer, which is one partial."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from pydantic_ai.exceptions import FallbackExceptionGroup, ModelAPIError, ModelHTTPError, ModelRequestRejectedError
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import RunContext

log = logging.getLogger(__name__)

_refused: WeakValueDictionary[int, Model] = WeakValueDictionary()
"""Models that answered whole after they had refused to stream."""


class UnstreamedModel(WrapperModel):
    """A model that is asked for a whole answer where it cannot stream one."""

    def __init__(self, wrapped: Model, known_as: Model) -> None:
        """Wrap a model; whether it streams is remembered for `known_as`."""
        super().__init__(wrapped)
        self._known_as = known_as

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Stream as the wrapped model does, or answer whole."""
        known = _refused.get(id(self._known_as)) is self._known_as
        async with AsyncExitStack() as stack:
            response = None
            if not known and _can_stream(self._known_as):
                try:
                    response = await stack.enter_async_context(
                        super().request_stream(messages, model_settings, model_request_parameters, run_context)
                    )
                except (NotImplementedError, ModelAPIError, FallbackExceptionGroup) as error:
                    if not _refuses_to_stream(error):
                        raise
            if response is None:
                response = await self._whole(messages, model_settings, model_request_parameters)
                if not known:
                    log.info("unstreamed.model model=%s", self._known_as.model_name)
                    _refused[id(self._known_as)] = self._known_as
            yield response

    async def _whole(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> StreamedResponse:
        response = await self.request(messages, model_settings, model_request_parameters)
        if response.finish_reason is None and response.state == "complete":
            response = replace(response, finish_reason="stop")  # It came whole; only a stream can be cut unseen.
        return CompletedStreamedResponse(
            response, model_request_parameters=model_request_parameters, replay_events=True
        )


def _can_stream(model: Model) -> bool:
    """Tell whether a model has code to stream with."""
    match model:
        case FallbackModel(models=models):
            return all(map(_can_stream, models))
        case WrapperModel(wrapped=wrapped):
            return _can_stream(wrapped)
        case FunctionModel(stream_function=stream_function):
            return stream_function is not None
        case _:
            return type(model).request_stream is not Model.request_stream


def _refuses_to_stream(error: BaseException) -> bool:
    """Return whether an error means that there is no streaming.

    Providers differ in the form: OpenAI's API answers an organisation that is not verified with 400, `param: stream`. A
    refusal that names streams for another reason costs one more request, which is refused, too.
    """
    match error:
        case NotImplementedError():
            return True
        case FallbackExceptionGroup(exceptions=errors):
            return any(map(_refuses_to_stream, errors))
        case ModelHTTPError(status_code=429):
            return False
        case ModelHTTPError(status_code=status, body=body) if status < 500 or status == 501:  # noqa: PLR2004
            return "stream" in str(body).lower()
        case ModelRequestRejectedError(body=body):
            return "stream" in str(body).lower()
        case _:
            return False
