"""Errors for clients: problem documents (RFC 9457). The one place that maps refusals to statuses."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPMethod, HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.exceptions import HTTPException
from starlette.routing import Match

from agent_relay.api.request_id import HEADER as REQUEST_ID_HEADER
from agent_relay.api.request_id import request_id_of
from agent_relay.api.security_headers import ON_EVERY_RESPONSE
from agent_relay.shared.away import skip_if_database_away
from agent_relay.shared.clock import new_id
from agent_relay.shared.database import trouble_of
from agent_relay.shared.errors import (
    AgentNotServed,
    AlreadyAnswered,
    BatchUnfinished,
    BudgetExhausted,
    KeyInUse,
    KeyReused,
    NotFound,
    NothingFailed,
    NotStarted,
    NotWaiting,
    QueueFull,
    Refusal,
    RotatedLately,
    RunEnded,
    ThreadBusy,
    TooManyMessages,
    UnknownAgent,
    WebhookRefused,
    WrongAttachment,
    WrongMessage,
)
from agent_relay.shared.failure_codes import FailureCode
from agent_relay.shared.unavailable import Trouble

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
HEADERS_OF_CALLER = "agent_relay.headers_of_caller"
"""Where a request's scope holds headers that each response to its caller carries, once it is known."""
RETRY_AFTER_SECONDS = 2
FULL_RETRY_AFTER_SECONDS = 5
"""A full queue moves as runs end, which takes longer than most outages."""
UNSERVED_RETRY_AFTER_SECONDS = 10
"""Somebody has to start a worker."""
CHALLENGE = {"WWW-Authenticate": "ApiKey, Bearer"}
"""The header of each refusal with 401: the ways to show a key."""
MOST_ERRORS = 100
MOST_NAMED = 20
"""Agents that a problem lists at most."""

_AGENTS = text("SELECT agent_type FROM agents ORDER BY agent_type")

FAILURE_STATUS: dict[FailureCode, int] = {
    FailureCode.MODEL_UNAVAILABLE: 502,
    FailureCode.MODEL_REJECTED: 502,
    FailureCode.OUTPUT_INVALID: 502,
    FailureCode.OUTPUT_TOO_LARGE: 502,
    FailureCode.AGENT_ERROR: 502,
    FailureCode.USAGE_LIMIT_EXCEEDED: 502,
    FailureCode.BUDGET_EXHAUSTED: 502,
    FailureCode.WORKER_CRASHED: 502,
    FailureCode.DEADLINE_EXCEEDED: 504,
    FailureCode.ANSWER_OVERDUE: 504,
    FailureCode.CANCELLED: 409,
}
"""The status of a blocking call whose run failed."""

_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    409: "conflict",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "too_many_requests",
    431: "head_too_large",
    500: "internal_error",
    503: "service_unavailable",
}


_MEANINGS = {
    400: "Malformed: the JSON, its encoding or nesting, a header, a cursor.",
    401: "No valid API key or token; absent, wrong, expired and revoked look the same.",
    403: "The key lacks the scope that this call needs (`scope_missing`), or a token of a user does not do for it"
    " (`key_needed`), may only read (`token_read_only`) or is restricted to other threads (`token_restricted`).",
    404: "It does not exist, or it belongs to another user, with the same response. So does the result of an"
    " `Idempotency-Key` that was deleted since.",
    406: "You accept neither of the two framings of a stream.",
    408: "The request arrived too slowly: send it again over a new connection.",
    409: "The thread has an unfinished run (`thread_busy`), the run was cancelled while you waited (`cancelled`), a"
    " call with the same `Idempotency-Key` has not been stored yet (`idempotency_key_in_use`), the batch has not ended"
    " (`batch_unfinished`), or nothing of it has failed (`nothing_failed`); the run waits for no answer"
    " (`not_waiting`), or was given another one before (`already_answered`).",
    413: "The body is over the limit.",
    415: "The body is not plain `application/json`, or of a batch `application/x-ndjson`; or a file may not be of this"
    " type.",
    422: "Well-formed but not valid: `errors` lists the errors with their places.",
    429: "A limit of this user or your tenant is reached: of requests a second (`too_many_requests`), of runs that wait"
    " (`user_queue_full`, `tenant_queue_full`), of unfinished runs of batches (`tenant_batches_full`), of streams and"
    " waiting calls (`user_calls_full`, `tenant_calls_full`), of batches and files that arrive (`user_uploads_full`,"
    " `tenant_uploads_full`), of the bytes of files (`user_files_full`, `tenant_files_full`), of the cost of your"
    " tenant's runs a day (`budget_exhausted`), or of rotations of the webhook secret (`secret_rotated_lately`)."
    " Try again after `Retry-After` seconds.",
    431: "The head of the request, or its trailers, are longer than 64 KiB.",
    502: "The run failed: `code` is its failure code, `run_id` its id.",
    503: "A dependency is down (`service_unavailable`), the service is full (`queue_full`, `queue_slow`,"
    " `batches_full`, `calls_full`, `uploads_full`, `too_many_connections`), or no living worker has served the agent"
    " for a while (`agent_not_served`): try again after `Retry-After` seconds.",
    504: "The run did not end before its deadline (`deadline_exceeded`), or its requests were not answered"
    " in time (`answer_overdue`).",
}


class FieldError(BaseModel):
    """One thing that is wrong with a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    pointer: str
    """Where: a JSON Pointer into the body, or `?name` for a query parameter."""
    code: str
    """The kind of error, stable."""
    message: str
    """A description for people."""


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """A URN that names the kind of problem."""
    title: str
    """The HTTP status in words."""
    status: int
    """The HTTP status."""
    detail: str
    """A description for people."""
    instance: str
    """The path that was called."""
    code: str
    """The kind of problem, stable: for programs."""
    request_id: str
    """The request's id, as in `X-Request-ID`: name it when you ask for help."""
    errors: list[FieldError] | None = None
    """With 422: the errors with their places, the first hundred."""
    run_id: str | None = None
    """Where a run is the problem: which."""
    thread_id: str | None = None
    """The thread of that run."""
    reason: str | None = None
    """Where PostgreSQL does nothing for now: why, in a word such as `read_only`."""


class Refused(Exception):
    """A request that is refused; nothing of it was stored."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldError] = (),
        **members: str | None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.code = code or _CODES[status]
        self.headers = dict(headers or {})
        self.errors = list(errors)[:MOST_ERRORS]
        self.members = members


def invalid(pointer: str, code: str, message: str) -> Refused:
    """Refuse one part of a well-formed request."""
    return Refused(422, "The request is not valid.", errors=[FieldError(pointer=pointer, code=code, message=message)])


ON_EVERY_CALL = (400, 408, 431, 503)
"""The statuses of the connection itself, for any call."""


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document the problems of a user's call, besides those that each of them can give."""
    return operator_responses(403, 429, *statuses)


def operator_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document the problems of an operator's call, besides those that each of them can give."""
    return problem_responses(*ON_EVERY_CALL, 401, 422, *statuses)


def example(status: int) -> dict[str, Any]:
    """Show a problem of that status."""
    code = {
        400: "malformed_json",
        409: "thread_busy",
        429: "user_queue_full",
        502: "model_unavailable",
        504: "deadline_exceeded",
    }.get(status)
    problem = Problem(
        type=f"urn:agent-relay:problem:{code or _CODES[status]}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=_MEANINGS[status],
        instance="/api/v1/runs",
        code=code or _CODES[status],
        request_id="0198c5a4-7c9e-7000-8000-0000000000aa",
        errors=[FieldError(pointer="/query", code="missing", message="Field required")] if status == 422 else None,  # noqa: PLR2004
    )
    return problem.model_dump(mode="json", exclude_none=True)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document problems; `docs.py` gives them their media type."""
    return {status: {"description": _MEANINGS[status], "model": Problem} for status in statuses}


_IN_PATHS = "/:@!$&'()*+,;=~"


Shape = Callable[[Problem, Mapping[str, str]], Response]
"""Writes an error as a protocol of others does, from the problem and the headers that its response is to have."""


def respond(request: Request, refused: Refused) -> Response:
    """Write the problem document, or what stands for it under this path, with what each response to its caller has."""
    of_caller = request.scope.get(HEADERS_OF_CALLER, {})
    path: str = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    shapes: Mapping[str, Shape] = request.app.state.error_shapes if "app" in request.scope else {}
    shape = next((shape for prefix, shape in shapes.items() if path.startswith(prefix)), _problem_document)
    return _response(refused, request.url.path, request_id_of(request.scope), of_caller, shape)


def written(refused: Refused, path: str) -> bytes:
    """Write a whole HTTP/1.1 response with the problem document, for a request that no application sees."""
    response = _response(refused, path, str(new_id()), {}, _problem_document)
    lines = [f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}".encode(), b"connection: close"]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"", response.body])


def _response(refused: Refused, path: str, request_id: str, of_caller: Mapping[str, str], shape: Shape) -> Response:
    problem = Problem(
        type=f"urn:agent-relay:problem:{refused.code}",
        title=HTTPStatus(refused.status).phrase,
        status=refused.status,
        detail=refused.detail,
        instance=quote(path, safe=_IN_PATHS),
        code=refused.code,
        request_id=request_id,
        errors=refused.errors or None,
        **refused.members,
    )
    return shape(problem, {REQUEST_ID_HEADER: problem.request_id, **ON_EVERY_RESPONSE, **of_caller, **refused.headers})


def _problem_document(problem: Problem, headers: Mapping[str, str]) -> Response:
    return Response(problem.model_dump_json(exclude_none=True), problem.status, headers, MEDIA_TYPE)


def install(app: FastAPI, shapes: Mapping[str, Shape]) -> None:
    """Answer every error of the application with a problem document, or in the form of its path.

    `shapes` are those of other protocols, by the beginnings of their paths, such as `/v1/`.
    """
    app.state.error_shapes = shapes
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Refusal, _refusal)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(SQLAlchemyError, _database)
    app.add_exception_handler(Exception, _unexpected)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101
    return respond(request, error)


_CONFLICTS: dict[type[Exception], str] = {
    NotWaiting: "not_waiting",
    AlreadyAnswered: "already_answered",
    BatchUnfinished: "batch_unfinished",
    NothingFailed: "nothing_failed",
    NotStarted: "not_started",
    RunEnded: "run_ended",
    TooManyMessages: "too_many_messages",
}


async def _refusal(request: Request, error: Exception) -> Response:
    match error:
        case UnknownAgent():
            refused = await unknown_agent(request.app.state.database, error)
        case WebhookRefused(code=code):
            refused = invalid("/webhook_url", code, str(error))
        case WrongAttachment(code=code, pointer=pointer):
            refused = invalid(pointer, code, str(error))
        case WrongMessage(field=field):
            refused = invalid(f"/{field}", "unknown_message", str(error))
        case KeyReused():
            wrong = FieldError(pointer="header:Idempotency-Key", code="idempotency_key_reused", message=str(error))
            refused = Refused(422, str(error), code="idempotency_key_reused", errors=[wrong])
        case NotFound():
            refused = Refused(404, str(error))
        case error if type(error) in _CONFLICTS:
            refused = Refused(409, str(error), code=_CONFLICTS[type(error)])
        case ThreadBusy(run_id=run_id):
            refused = Refused(409, str(error), code="thread_busy", run_id=str(run_id))
        case _:
            refused = _refused_for_now(error)
    return respond(request, refused)


def _refused_for_now(error: Exception) -> Refused:
    match error:
        case KeyInUse():
            status, code, seconds = 409, "idempotency_key_in_use", RETRY_AFTER_SECONDS
        case AgentNotServed():
            status, code, seconds = 503, "agent_not_served", UNSERVED_RETRY_AFTER_SECONDS
        case BudgetExhausted(seconds_left=seconds):
            status, code = 429, "budget_exhausted"
        case RotatedLately(seconds_left=seconds):
            status, code = 429, "secret_rotated_lately"
        case QueueFull(limit=limit):
            status, code, seconds = 429 if error.is_of_caller else 503, limit, FULL_RETRY_AFTER_SECONDS
        case _:
            raise error
    return Refused(status, str(error), code=code, headers={"Retry-After": str(seconds)})


async def unknown_agent(database: AsyncEngine, error: UnknownAgent, pointer: str = "/agent_type") -> Refused:
    """Refuse a query for an agent that is not known, and name some that are."""
    known = "See `GET /agents`."
    with skip_if_database_away(log, "problems.database_away"):
        known = await _known_agents(database, error.allowed)
    return invalid(pointer, "unknown_agent", f"{error} {known}")


async def _known_agents(database: AsyncEngine, allowed: frozenset[str] | None) -> str:
    async with database.connect() as connection:
        names = [name for name in await connection.scalars(_AGENTS) if allowed is None or name in allowed]
    if not names:
        if allowed is not None:
            return "This key may ask none of the known agents."
        return "No agent is known: no worker has started on this database yet."
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"Known agents: {', '.join(names[:MOST_NAMED])}{more}."


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    details: list[dict[str, Any]] = list(error.errors())
    for detail in details:
        if detail["loc"][0] == "path":  # An id that cannot be one is as unknown as any other.
            return respond(request, Refused(404, str(NotFound(str(detail["loc"][-1]).removesuffix("_id")))))
    return respond(request, Refused(422, "The request is not valid.", errors=field_errors(details)))


def field_errors(details: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    """Say what pydantic found wrong, and where."""
    return [
        FieldError(pointer=_pointer(detail["loc"]), code=detail["type"], message=_without_input(detail["msg"]))
        for detail in details[:MOST_ERRORS]
    ]


def _pointer(location: Sequence[str | int]) -> str:
    place, *path = location
    if place == "body":
        return "".join(f"/{pointer_step(step)}" for step in path)
    return f"?{pointer_step(path[0])}" if place == "query" else f"{place}:{path[0]}"


def pointer_step(step: str | int) -> str:
    """Write one step of a JSON Pointer (RFC 6901); of a name that the caller made up, the beginning is enough."""
    return str(step)[:64].encode(errors="replace").decode().replace("~", "~0").replace("/", "~1")


def _without_input(message: str) -> str:
    """Leave out what pydantic quotes of the input: it is never echoed."""
    return re.split(r", (?:input|invalid|found)| \[", message, maxsplit=1)[0]


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    known = error.status_code if error.status_code in _CODES else 400
    headers = {"Allow": _allowed(request)} if known == HTTPStatus.METHOD_NOT_ALLOWED else dict(error.headers or {})
    detail = f"{error.detail}."
    plain = "/" + "/".join(filter(None, request.url.path.split("/")))
    if known == HTTPStatus.NOT_FOUND and plain != request.url.path:
        detail = f"Not Found. Paths have no slash at their end and none twice: {quote(plain, safe=_IN_PATHS)}."
    return respond(request, Refused(known, detail, headers=headers))


def _allowed(request: Request) -> str:
    """List the methods of a path, all its routes taken together."""
    routes = request.app.routes
    allowed = {
        method.value
        for method in HTTPMethod
        if any(route.matches({**request.scope, "method": method.value})[0] is Match.FULL for route in routes)
    }
    return ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))


async def _database(request: Request, error: Exception) -> Response:
    trouble = trouble_of(error)
    if trouble is None:
        raise error
    log.warning("problems.database_away path=%s reason=%s error=%r", request.url.path, trouble, error)
    return respond(request, database_away(trouble))


def database_away(trouble: Trouble) -> Refused:
    """Refuse for now, because PostgreSQL does."""
    return unavailable(f"The database {trouble.sentence}.", reason=trouble)


def unavailable(detail: str, *, reason: str | None = None) -> Refused:
    """Refuse for now."""
    return Refused(503, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)}, reason=reason)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("problems.unexpected path=%s", request.url.path, exc_info=error)
    return respond(request, Refused(500, "Something is wrong on our side."))
