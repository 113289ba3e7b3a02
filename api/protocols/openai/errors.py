"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse, Response

from agent_relay.api.problems import FAILURE_STATUS, FieldError, Problem, Refused
from agent_relay.shared.failure_codes import SENTENCES, FailureCode
from agent_relay.shared.rows import RunEnd
from agent_relay.shared.schemas import RunError, error_of

SHOULD_RETRY = "x-should-retry"
"""OpenAI's clients repeat a call after 408, 409, 429 and each 5xx, unless this header says otherwise."""

_CODES = {
    "unauthorized": "invalid_api_key",
    "unknown_agent": "model_not_found",
    "extra_forbidden": "unsupported_parameter",
    "missing": "missing_required_parameter",
    "too_many_requests": "rate_limit_exceeded",
    "budget_exhausted": "insufficient_quota",
}
"""Codes that OpenAI has a word of its own for; all others are those of this service."""
_NAMES = {"agent_type": "model", "query": "input"}
"""What the fields of a query are called here."""
_TO_BE_REPEATED = {"idempotency_key_in_use"}
"""Conflicts that pass."""


def error_response(problem: Problem, headers: Mapping[str, str]) -> Response:
    """Write a problem as an error of OpenAI's."""
    wrong = problem.errors[0] if problem.errors else None
    code = problem.code if wrong is None else wrong.code
    status = problem.status
    if code == "unknown_agent":
        status = HTTPStatus.NOT_FOUND
    elif status == HTTPStatus.UNPROCESSABLE_ENTITY:
        status = HTTPStatus.BAD_REQUEST
    error = _error(status, _message(problem, wrong), None if wrong is None else _param(wrong.pointer), code)
    if problem.run_id is not None:
        error["run_id"] = problem.run_id
    more: dict[str, str] = {}
    if status == HTTPStatus.CONFLICT and code not in _TO_BE_REPEATED:
        more[SHOULD_RETRY] = "false"
    return JSONResponse({"error": error}, status, {**more, **headers})


def error_of_run(failed: RunError) -> dict[str, Any]:
    """Write why a run failed, where a stream has begun."""
    return _error(FAILURE_STATUS[failed.code], failed.message, None, failed.code)


CANCELLED = RunError(code=FailureCode.CANCELLED, message=SENTENCES[FailureCode.CANCELLED], retryable=False)


def failed(row: RunEnd) -> Refused:
    """Refuse a call whose run has no answer. Its client repeats it only where that may help."""
    failure = CANCELLED if row.error is None else error_of(row.error)
    return Refused(
        FAILURE_STATUS[failure.code],
        failure.message,
        code=failure.code,
        headers={SHOULD_RETRY: "true" if failure.retryable else "false"},
        run_id=str(row.id),
    )


def _error(status: int, message: str, param: str | None, code: str) -> dict[str, Any]:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        kind = "server_error"
    else:
        kind = "invalid_request_error"
    return {"message": message, "type": kind, "param": param, "code": _CODES.get(code, code)}


def _message(problem: Problem, wrong: FieldError | None) -> str:
    if wrong is None:
        if problem.status == HTTPStatus.NOT_FOUND and problem.detail.startswith("Not Found"):
            return (
                f"{problem.detail} Of OpenAI's API, this service has /v1/models, /v1/chat/completions, /v1/responses,"
                " /v1/conversations and /v1/files."
            )
        return problem.detail
    param = _param(wrong.pointer)
    if wrong.code == "extra_forbidden":
        return f"Unsupported parameter: '{param}'."
    return f"{param}: {wrong.message}" if param else wrong.message


def _param(pointer: str) -> str | None:
    """Write a JSON Pointer as OpenAI names a parameter: `messages[0].content`."""
    if not pointer.startswith("/"):
        return pointer.removeprefix("?").removeprefix("header:") or None
    first, *steps = (step.replace("~1", "/").replace("~0", "~") for step in pointer[1:].split("/"))
    return _NAMES.get(first, first) + "".join(
        f"[{step}]" if re.fullmatch("[0-9]+", step) else f".{step}" for step in steps
    )
