"""The failure code of a model's error, its message for callers, and the provider's words for the operator."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from pydantic_ai.exceptions import (
    ContentFilterError,
    FallbackExceptionGroup,
    ModelAPIError,
    ModelAuthenticationError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRequestRejectedError,
)

from agent_relay.shared.failure_codes import FailureCode

LOGGED_CHARACTERS = 2000
"""The longest that one error of a provider stands in the log."""
_REJECTED = frozenset({400, 401, 403, 404, 413, 422})
_SECRET = re.compile(r"\b(?:sk|rk|pk|gsk|xai|hf|key)[-_][\w*.-]{6,}|\bAIza[\w*-]{10,}|(?<=bearer )\S+", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_NAMES_A_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")
_SHORTEST_SECRET = 8


def is_rejected(error: BaseException) -> bool:
    """Tell whether a provider refused the request itself, so that asking the same again is refused again."""
    match error:
        case FallbackExceptionGroup(exceptions=errors):
            return all(map(is_rejected, errors))
        case ModelQuotaExceededError():
            return False  # Once it is paid, the same request succeeds.
        case ContentFilterError() | ModelRequestRejectedError():
            return True
        case ModelHTTPError(status_code=status):
            return status in _REJECTED
        case _:
            return False


def failure_of(error: ModelAPIError | FallbackExceptionGroup | ContentFilterError) -> tuple[FailureCode, str]:
    """Return the code of the run and a sentence for callers, without the provider's own words."""
    if not is_rejected(error):
        return FailureCode.MODEL_UNAVAILABLE, f"The model cannot be had: {_kind(error)}."
    return FailureCode.MODEL_REJECTED, _rejection(error)


def _rejection(error: BaseException) -> str:
    match error:
        case ContentFilterError():
            return "The content filter of the model's provider stopped the answer."
        case ModelContextWindowExceededError():
            return "The conversation is longer than the model's context window."
        case ModelAuthenticationError():
            return f"The model's provider does not accept the credentials of this service: {_kind(error)}."
        case ModelNotFoundError():
            return f"The model's provider does not know the model: {_kind(error)}."
        case _:
            return f"The model's provider rejected the request: {_kind(error)}."


def _kind(error: BaseException) -> str:
    status = getattr(error, "status_code", None)
    return f"its provider answered {status}" if status else type(error).__name__


def for_operator(error: BaseException) -> str:
    """Write a provider's error in one line: status and body, cut to `LOGGED_CHARACTERS`, keys left out."""
    return " | ".join(map(_said, _each(error)))


def _each(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, FallbackExceptionGroup):
        for one in error.exceptions:
            yield from _each(one)
    else:
        yield error


def _said(error: BaseException) -> str:
    body = getattr(error, "body", None)
    words = str(error) if body is None else f"status={getattr(error, 'status_code', None)} body={body}"
    if body is None and error.__cause__ is not None:
        words += f" ({type(error.__cause__).__name__}: {error.__cause__})"
    model = getattr(error, "model_name", None)
    text = f"{type(error).__name__} model={model} {words}"
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _NAMES_A_SECRET.search(name):
            text = text.replace(value, "***")
    text = _CONTROL.sub(" ", _SECRET.sub("***", text).encode(errors="replace").decode())
    return text if len(text) <= LOGGED_CHARACTERS else f"{text[:LOGGED_CHARACTERS]}… ({len(text)} characters)"
