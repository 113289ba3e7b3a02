"""What a request must be before a route sees it: from somebody known, well-formed, and with nothing that is ignored."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from itertools import islice
from typing import Any, NoReturn

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from api.identity import identify, identify_by_ticket, identify_operator
from api.problems import MOST_ERRORS, FieldError, Refused, pointer_step

MAX_DEPTH = 64
IDEMPOTENCY_KEY = "Idempotency-Key"

_SURROGATE = re.compile("[\ud800-\udfff]")


class StrictRequest(Request):
    """A request whose body is read within limits and parsed as JSON means it."""

    async def body(self) -> bytes:
        """Read the body, counting as it comes."""
        if not hasattr(self, "_body"):
            limit = self.app.state.settings.max_body_bytes
            if int(self.headers.get("content-length") or 0) > limit:
                raise _too_large(limit)
            chunks: list[bytes] = []
            size = 0
            try:
                async for chunk in self.stream():
                    size += len(chunk)
                    if size > limit:
                        raise _too_large(limit)
                    chunks.append(chunk)
            except ClientDisconnect:
                raise Refused(400, "The body ended before its end.") from None
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        """Parse the body."""
        if not hasattr(self, "_json"):
            self._json = _parse(await self.body())
        return self._json


class StrictRoute(APIRoute):
    """A route of the API: identity first, then the query string, then the body."""

    @staticmethod
    def identify(request: Request) -> None:
        """Find out who calls, or refuse."""
        identify(request)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()
        known = set(_query_names(self.dependant))
        takes_body = self.body_field is not None
        takes_key = IDEMPOTENCY_KEY in _header_names(self.dependant)

        async def strictly(request: Request) -> Response:
            self.identify(request)
            _check_query(request, known)
            if request.method == "POST" and not takes_key and IDEMPOTENCY_KEY in request.headers:
                message = "This call creates nothing and takes no key"
                raise _invalid([FieldError(pointer=f"header:{IDEMPOTENCY_KEY}", code="not_offered", message=message)])
            strict = StrictRequest(request.scope, request.receive)
            if takes_body:
                _check_content_type(request)
                await strict.json()  # FastAPI would take whatever goes wrong here for a 400 of its own.
            return await handle(strict)

        return strictly


class TicketedRoute(StrictRoute):
    """A route that a ticket opens as well as the headers do."""

    @staticmethod
    def identify(request: Request) -> None:
        """Find out who calls, or whose ticket it is, or refuse."""
        if "ticket" in request.query_params:
            identify_by_ticket(request)
        else:
            identify(request)


class OperatorRoute(StrictRoute):
    """A route for operators, with keys of their own and no user."""

    @staticmethod
    def identify(request: Request) -> None:
        """Find out which operator calls, or refuse."""
        identify_operator(request)


def _query_names(dependant: Dependant) -> Iterator[str]:
    for field in dependant.query_params:
        model = field.field_info.annotation
        fields = getattr(model, "model_fields", None)
        if fields is None:
            yield field.alias
        else:
            yield from (info.alias or name for name, info in fields.items())
    for inner in dependant.dependencies:
        yield from _query_names(inner)


def _header_names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.header_params)
    for inner in dependant.dependencies:
        yield from _header_names(inner)


def _check_query(request: Request, known: set[str]) -> None:
    given = Counter(name for name, _ in request.query_params.multi_items())
    errors = [
        FieldError(pointer=f"?{pointer_step(name)}", code="extra_forbidden", message="Unknown parameter")
        if name not in known
        else FieldError(pointer=f"?{name}", code="repeated", message="Given more than once")
        for name, times in given.items()
        if name not in known or times > 1
    ]
    if errors:
        raise _invalid(errors)


def _check_content_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refused(415, "The body must be application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "The body must not be compressed.", headers={"Accept-Encoding": "identity"})


def _parse(body: bytes) -> Any:
    """Read JSON that can be stored."""
    try:
        value = json.loads(body.decode(), parse_constant=_constant, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise _malformed("The body is not UTF-8.") from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise _malformed(f"The body is not JSON at character {error.pos}.") from None
    except ValueError:
        raise _malformed("The body holds a number of too many digits.") from None
    errors = list(islice(_unstorable(value), MOST_ERRORS))
    if errors:
        raise _invalid(errors)
    return value


def _constant(_: str) -> NoReturn:
    raise _malformed("JSON has neither NaN nor Infinity.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; of a name that stands there twice, one value would be ignored."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _malformed("A name stands twice in one object.")
    return value


def _invalid(errors: list[FieldError]) -> Refused:
    return Refused(422, "The request is not valid.", errors=errors)


def _malformed(detail: str) -> Refused:
    return Refused(400, detail, code="malformed_json")


def _too_deep() -> Refused:
    return _malformed(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _too_large(limit: int) -> Refused:
    return Refused(413, f"The body is longer than {limit} bytes.")


_Path = tuple[Any, str | int] | None
"""The way to a value: the way to what holds it, and a step. Only where something is wrong it is written out."""


def _unstorable(root: Any) -> Iterator[FieldError]:
    """Walk over a JSON value, level by level, and find what no column can hold; a megabyte has many values."""
    level: list[tuple[_Path, Any]] = [(None, root)] if isinstance(root, (dict, list)) else []
    for depth in range(1, MAX_DEPTH + 1):
        below: list[tuple[_Path, Any]] = []
        for path, container in level:
            named = isinstance(container, dict)
            members: Any = container.items() if named else enumerate(container)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            for step, value in members:
                if named and (code := _wrong(step)):
                    yield _field_error(path, code)
                if isinstance(value, (dict, list)):
                    if value or depth == MAX_DEPTH:
                        below.append(((path, step), value))  # pyright: ignore[reportUnknownArgumentType]
                elif code := _wrong(value):
                    yield _field_error((path, step), code)
        level = below
    if level:
        raise _too_deep()


_MESSAGES = {
    "nul_character": "Text may not hold U+0000",
    "lone_surrogate": "Text may not hold half a surrogate pair",
    "number_out_of_range": "The number is too large",
}


def _wrong(value: object) -> str | None:
    if isinstance(value, str):
        if "\0" in value:
            return "nul_character"
        return "lone_surrogate" if not value.isascii() and _SURROGATE.search(value) else None
    return "number_out_of_range" if isinstance(value, float) and not math.isfinite(value) else None


def _field_error(path: _Path, code: str) -> FieldError:
    pointer = ""
    while path is not None:
        path, step = path
        pointer = f"/{pointer_step(step)}{pointer}"
    return FieldError(pointer=pointer, code=code, message=_MESSAGES[code])
