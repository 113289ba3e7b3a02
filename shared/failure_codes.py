"""How a run can fail: one closed table, which clients may rely on."""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class FailureCode(StrEnum):
    """What went wrong with a run; never what went wrong with the service."""

    MODEL_UNAVAILABLE = "model_unavailable"
    MODEL_REJECTED = "model_rejected"
    OUTPUT_INVALID = "output_invalid"
    OUTPUT_TOO_LARGE = "output_too_large"
    AGENT_ERROR = "agent_error"
    USAGE_LIMIT_EXCEEDED = "usage_limit_exceeded"
    BUDGET_EXHAUSTED = "budget_exhausted"
    WORKER_CRASHED = "worker_crashed"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    ANSWER_OVERDUE = "answer_overdue"
    CANCELLED = "cancelled"


RETRYABLE = frozenset({FailureCode.MODEL_UNAVAILABLE, FailureCode.OUTPUT_INVALID, FailureCode.DEADLINE_EXCEEDED})
"""Asking the same again may well succeed."""

DEAD = RETRYABLE | {FailureCode.WORKER_CRASHED}
"""What makes a failed run a dead letter: an operator who has mended what was wrong can have the same asked again."""

SENTENCES: dict[FailureCode, str] = {
    FailureCode.WORKER_CRASHED: "The worker died while it answered, more often than a run may take it.",
    FailureCode.DEADLINE_EXCEEDED: "The run did not end before its deadline.",
    FailureCode.ANSWER_OVERDUE: "Not everything that the run waited for was answered in time.",
    FailureCode.CANCELLED: "The run was cancelled.",
}


LONGEST_MESSAGE = 4000
"""Characters; a message may quote what a model or an agent said."""


def failure(code: FailureCode, message: str | None = None) -> dict[str, Any]:
    """Render a run's `error` as clients see it."""
    said = message or SENTENCES[code]
    if len(said) > LONGEST_MESSAGE:
        said = f"{said[:LONGEST_MESSAGE]}… ({len(said)} characters)"
    return {"code": code.value, "message": said, "retryable": code in RETRYABLE}
