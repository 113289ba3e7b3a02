"""Checks before a route: the caller is identified, the request is well-formed, and no part of it would be ignored."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn, get_args
from uuid import UUID

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from agent_relay.api.problems import HEADERS_OF_CALLER, MOST_ERRORS, FieldError, Refused, pointer_step
from agent_relay.api.requests.identity import caller_of, identify, identify_by_ticket, identify_operator
from agent_relay.api.requests.user_tokens import check_token
from agent_relay.shared import logs
from agent_relay.shared.api_keys import Scope
from agent_relay.shared.errors import NotFound
from agent_relay.shared.plain_numbers import DECIMAL, WHOLE

_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_PLAIN: dict[object, tuple[re.Pattern[str], str, str]] = {
    int: (WHOLE, "int_parsing", "Must be a whole number in plain digits, such as 20"),
    float: (DECIMAL, "float_parsing", "Must be a number as JSON writes it, such as 2.5"),
    bool: (re.compile("true|false"), "bool_parsing", "Must be true or false"),
    UUID: (_UUID, "uuid_parsing", "Must be a UUID, such as 0198c5a4-7c9e-7000-8000-0000000000a1"),
}
"""How values in a query string are written, by their type. pydantic takes more: `1_0`, `+5`, `.5`, `yes`."""
MAX_DEPTH = 64
MOST_VALUES = 2_000
"""Values that a body, or an item of a batch, may hold. Text, however long, is one."""
MOST_BITS = 1024
"""The limit of a number: that of double precision, which few JSON readers exceed."""
_SURELY_READ_DIGITS = 310
"""A number of more, its sign included, has more bits than `MOST_BITS`."""
_MOST_DIGITS = 4_300
"""Of a whole number; one of more is malformed."""
IDEMPOTENCY_KEY = "Idempotency-Key"


class StrictRequest(Request):
    """A request whose body is read within limits and parsed as JSON means it."""

    most_values = MOST_VALUES
    """That the body may hold."""

    async def body(self) -> bytes:
        """Read the body, counting as it comes."""
        if not hasattr(self, "_body"):
            self._body = b"".join([chunk async for chunk in chunks_of(self, self.app.state.settings.max_body_bytes)])
        return self._body

    async def json(self) -> Any:
        """Parse the body."""
        if not hasattr(self, "_json"):
            self._json = _parse(await self.body(), self.most_values)
        return self._json


async def chunks_of(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Read a body as it comes.

    Raises:
        Refused: 413, it is longer than the limit; 400, its sender has gone.
    """
    if int(request.headers.get("content-length") or 0) > limit:
        raise _too_large(limit)
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            yield chunk
    except ClientDisconnect:
        raise Refused(400, "The body ended before its end.") from None


_AREAS = {"/batches": Scope.BATCHES, "/webhooks": Scope.WEBHOOKS, "/users/": Scope.READ}
"""The scope that the calls of a path need, and no other; all others need `ask`."""


class StrictRoute(APIRoute):
    """A route of the API: identity first, then the query string, then the body."""

    most_values = MOST_VALUES
    """That a body may hold."""

    async def identify(self, request: Request) -> None:
        """Identify the caller, or refuse."""
        await identify(request, self._scopes(request.method))

    async def _check_token(self, request: Request) -> None:
        """See that the token that was shown, if one was, allows the call."""
        caller = caller_of(request)
        if caller is not None and caller.token is not None:
            reads = Scope.READ in self._scopes(request.method)
            await check_token(request, caller.token, self.path_format, reads=reads)

    def _scopes(self, method: str) -> tuple[Scope, ...]:
        """Say which scopes of a key allow a call of this route."""
        area = next((scope for path, scope in _AREAS.items() if path in self.path_format), Scope.ASK)
        if self.path_format.endswith("/agents"):
            return tuple(Scope)
        if self.path_format.endswith("/users/me/data"):
            return ()  # It takes the rights of all scopes.
        return (
            (area, Scope.READ) if method in {"GET", "HEAD"} or self.path_format.endswith("/stream-ticket") else (area,)
        )

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()
        known = dict(_query_types(self.dependant))
        takes_body = self.body_field is not None
        takes_key = IDEMPOTENCY_KEY in _header_names(self.dependant)

        async def strictly(request: Request) -> Response:
            _name_lines(request.path_params)
            await self.identify(request)
            rate = await _take_turn(request)
            _check_path(request)
            await self._check_token(request)
            _check_query(request, known)
            if request.method == "POST" and not takes_key and IDEMPOTENCY_KEY in request.headers:
                message = "This call creates nothing and takes no key"
                raise _invalid([FieldError(pointer=f"header:{IDEMPOTENCY_KEY}", code="not_offered", message=message)])
            strict = StrictRequest(request.scope, request.receive)
            strict.most_values = self.most_values
            if takes_body:
                media_type_of(request, "application/json")
                await strict.json()  # FastAPI would answer any exception here with a 400 of its own.
            response = await handle(strict)
            response.headers.update(rate)
            return response

        return strictly


async def _take_turn(request: Request) -> dict[str, str]:
    """Count the request of a user against the rate that is allowed; returns headers of the response, a refusal, too."""
    caller = caller_of(request)
    headers: dict[str, str] = {} if caller is None else await request.app.state.limits.requests.take(caller)
    request.scope[HEADERS_OF_CALLER] = headers
    return headers


class TicketedRoute(StrictRoute):
    """A route that a ticket opens as well as the headers do."""

    async def identify(self, request: Request) -> None:
        """Identify the caller, or the user of the ticket, or refuse."""
        if "ticket" in request.query_params:
            await identify_by_ticket(request)
        else:
            await super().identify(request)


class TenantRoute(StrictRoute):
    """A route for the holder of a key, without a user."""

    async def identify(self, request: Request) -> None:
        """Identify the key, or refuse."""
        await identify(request, self._scopes(request.method), needs_user=False)


class OperatorRoute(StrictRoute):
    """A route for operators, with keys of their own and no user."""

    async def identify(self, request: Request) -> None:
        """Find out which operator calls, or refuse."""
        identify_operator(request)


def _name_lines(path_params: dict[str, str]) -> None:
    """Add the run or batch of this request to its lines in the log."""
    for name, about in (("run_id", logs.RUN_ID), ("batch_id", logs.BATCH_ID)):
        if _UUID.fullmatch(path_params.get(name, "")):
            about.set(path_params[name])


def _check_path(request: Request) -> None:
    """See that the path is written as the API writes it: there is one spelling of each, but for capitals in a UUID.

    Raises:
        Refused, NotFound: 404, it is another.
    """
    for name, value in request.path_params.items():
        if name.endswith("_id") and not _UUID.fullmatch(value):
            raise NotFound(name.removesuffix("_id"))
    if request.scope["path"].endswith("\n"):  # The router lets it pass.
        raise Refused(404, "Not Found.")


def _query_types(dependant: Dependant) -> Iterator[tuple[str, object]]:
    """List the query parameters of a route, each with its type."""
    for field in dependant.query_params:
        model = field.field_info.annotation
        fields = getattr(model, "model_fields", None)
        if fields is None:
            yield field.alias, _without_none(model)
        else:
            yield from ((info.alias or name, _without_none(info.annotation)) for name, info in fields.items())
    for inner in dependant.dependencies:
        yield from _query_types(inner)


def _without_none(annotation: object) -> object:
    """Return the one type of an optional parameter."""
    types = [each for each in get_args(annotation) if each is not type(None)]
    return types[0] if len(types) == 1 else annotation


def _header_names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.header_params)
    for inner in dependant.dependencies:
        yield from _header_names(inner)


def _check_query(request: Request, known: Mapping[str, object]) -> None:
    items = request.query_params.multi_items()
    given = Counter(name for name, _ in items)
    errors = [
        FieldError(pointer=f"?{pointer_step(name)}", code="extra_forbidden", message="Unknown parameter")
        if not _is_known(name, known)
        else FieldError(pointer=f"?{name}", code="repeated", message="Given more than once")
        for name, times in given.items()
        if not _is_known(name, known) or times > 1
    ]
    for name, value in items:
        plain, code, message = _PLAIN.get(known.get(name), (None, "", ""))
        if plain is not None and not plain.fullmatch(value):
            errors.append(FieldError(pointer=f"?{name}", code=code, message=message))
    if errors:
        raise _invalid(errors)


def _is_known(name: str, known: Mapping[str, object]) -> bool:
    """Tell whether a route takes a parameter; one that it names `x.` stands for all of `x.<anything>`."""
    return name in known or ("." in name and name[: name.index(".") + 1] in known)


def media_type_of(request: Request, *known: str) -> str:
    """Tell which of the known types a body has.

    Raises:
        Refused: 415, it has another, or is compressed.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in known:
        raise Refused(415, f"The body must be {' or '.join(known)}.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "The body must not be compressed.", headers={"Accept-Encoding": "identity"})
    return media_type


def _parse(body: bytes, most_values: int) -> Any:
    """Read JSON that can be stored."""
    value = read_json(body, most_values=most_values)
    errors = unstorable(value)
    if errors:
        raise _invalid(errors)
    return value


def read_json(body: bytes, what: str = "body", most_values: int = MOST_VALUES) -> Any:
    """Read JSON.

    Raises:
        Refused: 400, it is malformed or nested too deep; 422, it holds more values than `most_values`.
    """
    if might_hold_many_values(body, most_values):
        _count_values(body, what, most_values)
    try:
        return _DECODER.decode(body.decode("utf-8-sig"))  # A byte order mark is skipped, as RFC 8259 allows.
    except UnicodeDecodeError:
        raise malformed(f"The {what} is not UTF-8.") from None
    except RecursionError:
        raise too_deep() from None
    except json.JSONDecodeError as error:
        raise malformed(f"The {what} is not JSON at character {error.pos}.") from None
    except ValueError:
        raise malformed(f"The {what} holds a number of too many digits.") from None


_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[,\[\]{}]', re.DOTALL)
"""A string, also one that does not end, or what separates values."""


def might_hold_many_values(body: bytes, most_values: int = MOST_VALUES) -> bool:
    """Tell whether there are more values than that, if all that looks like one is outside of strings."""
    return body.count(b",") + body.count(b"[") + body.count(b"{") >= most_values


def _count_values(body: bytes, what: str, most_values: int) -> None:
    """Count the values before any is made: a megabyte may hold half a million, each of which costs memory and time.

    Raises:
        Refused: 422, they are too many; 400, it is nested too deep, or has more strings than its values could have.
    """
    values = strings = depth = 0
    for token in _TOKEN.finditer(body):
        match body[token.start()]:
            case 0x22:
                strings += 1
            case 0x5D | 0x7D:
                depth -= 1
            case 0x2C:
                values += 1
            case _:
                values, depth = values + 1, depth + 1
        if depth > MAX_DEPTH:
            raise too_deep()
        if values >= most_values:
            raise _invalid([FieldError(pointer="", code="too_many_values", message=f"At most {most_values} values")])
        if strings > 2 * most_values:
            raise malformed(f"The {what} is not JSON.")


_DOUBTFUL = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


def may_be_unstorable(text: bytes) -> bool:
    """Tell whether some string in a JSON text may be one that no column can hold: only as an escape can it be there."""
    return _DOUBTFUL.search(text) is not None


def unstorable(value: Any) -> list[FieldError]:
    """List what no column can hold of a JSON value, the first hundred places.

    Raises:
        Refused: 400, it is nested too deep.
    """
    return list(islice(_unstorable(value), MOST_ERRORS))


def _constant(_: str) -> NoReturn:
    raise malformed("JSON has neither NaN nor Infinity.")


def _no_repeated_name(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; of a name that stands there twice, one value would be ignored."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise malformed("A name stands twice in one object.")
    return value


def _whole_number(digits: str) -> int | float:
    """Read a whole number; one that `unstorable` refuses in any case is not worked out, which takes long.

    Raises:
        ValueError: it has more digits than Python reads.
    """
    if len(digits) <= _SURELY_READ_DIGITS:
        return int(digits)
    if len(digits.removeprefix("-")) > _MOST_DIGITS:
        raise ValueError
    return math.inf


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_int=_whole_number, object_pairs_hook=_no_repeated_name)


def _invalid(errors: list[FieldError]) -> Refused:
    return Refused(422, "The request is not valid.", errors=errors)


def malformed(detail: str) -> Refused:
    """Refuse text that is not strict JSON."""
    return Refused(400, detail, code="malformed_json")


def too_deep() -> Refused:
    """Refuse values that are nested too deep."""
    return malformed(f"The body is nested deeper than {MAX_DEPTH} levels.")


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
        raise too_deep()


_MESSAGES = {
    "nul_character": "Text may not hold U+0000",
    "lone_surrogate": "Text may not hold half a surrogate pair",
    "number_out_of_range": "The number is too large",
}


def _wrong(value: object) -> str | None:
    if isinstance(value, str):
        if "\0" in value:
            return "nul_character"
        return None if value.isascii() or _is_text(value) else "lone_surrogate"
    if isinstance(value, float):
        return None if math.isfinite(value) else "number_out_of_range"
    return "number_out_of_range" if isinstance(value, int) and value.bit_length() > MOST_BITS else None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _field_error(path: _Path, code: str) -> FieldError:
    pointer = ""
    while path is not None:
        path, step = path
        pointer = f"/{pointer_step(step)}{pointer}"
    return FieldError(pointer=pointer, code=code, message=_MESSAGES[code])
