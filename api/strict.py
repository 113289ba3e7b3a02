"""What a request must be before a route sees it: from somebody known, well-formed, and with nothing that is ignored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NoReturn

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.responses import Response
from fastapi.routing import APIRoute

from api.identity import identify
from api.problems import FieldError, Refused, pointer_step

MAX_DEPTH = 64


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
            async for chunk in self.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        """Parse the body."""
        try:
            value = json.loads((await self.body()).decode(), parse_constant=_constant)
        except UnicodeDecodeError:
            raise Refused(400, "The body is not UTF-8.", code="malformed_json") from None
        except RecursionError:
            raise _too_deep() from None
        except ValueError as error:
            position = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
            raise Refused(400, f"The body is not JSON{position}.", code="malformed_json") from None
        errors = [error for error in _unstorable(value) if error]
        if errors:
            raise Refused(422, "The request is not valid.", errors=errors)
        return value


class StrictRoute(APIRoute):
    """A route of the API: identity first, then the query string, then the body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()
        known = set(_query_names(self.dependant))
        takes_body = self.body_field is not None

        async def strictly(request: Request) -> Response:
            identify(request)
            unknown = [name for name in request.query_params if name not in known]
            if unknown:
                errors = [
                    FieldError(pointer=f"?{pointer_step(name)}", code="extra_forbidden", message="Unknown parameter")
                    for name in unknown
                ]
                raise Refused(422, "The request is not valid.", errors=errors)
            if takes_body:
                _check_content_type(request)
            if request.method == "POST" and "idempotency-key" in request.headers:
                error = FieldError(pointer="header:Idempotency-Key", code="not_offered", message="Not offered yet")
                raise Refused(422, "The request is not valid.", errors=[error])
            return await handle(StrictRequest(request.scope, request.receive))

        return strictly


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


def _check_content_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refused(415, "The body must be application/json.")


def _constant(name: str) -> NoReturn:
    raise ValueError(name)


def _too_large(limit: int) -> Refused:
    # The rest of the body will not be read, so the connection cannot be used again.
    return Refused(413, f"The body is longer than {limit} bytes.", headers={"Connection": "close"})


def _too_deep() -> Refused:
    return Refused(400, f"The body is nested deeper than {MAX_DEPTH} levels.", code="malformed_json")


def _unstorable(root: Any) -> Iterator[FieldError | None]:
    """Walk over a JSON value and find what no text column can hold, without recursion."""
    waiting: list[tuple[str, Any, int]] = [("", root, 1)]
    while waiting:
        pointer, value, depth = waiting.pop()
        if isinstance(value, str):
            yield _wrong_text(pointer, value)
        elif isinstance(value, float) and not math.isfinite(value):
            yield FieldError(pointer=pointer, code="number_out_of_range", message="The number is too large")
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                raise _too_deep()
            items: Any = value.items() if isinstance(value, dict) else enumerate(value)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType, reportUnknownVariableType]
            for key, inner in items:
                if isinstance(key, str):
                    yield _wrong_text(pointer, key)
                waiting.append((f"{pointer}/{pointer_step(key)}", inner, depth + 1))


def _wrong_text(pointer: str, text: str) -> FieldError | None:
    if "\0" in text:
        return FieldError(pointer=pointer, code="nul_character", message="Text may not hold U+0000")
    try:
        text.encode()
    except UnicodeEncodeError:
        return FieldError(pointer=pointer, code="lone_surrogate", message="Text may not hold half a surrogate pair")
    return None
