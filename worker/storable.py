"""Make what agents, models and tools produce fit to be stored and published.

Python holds more than JSON, UTF-8 and PostgreSQL can: lone surrogates, NUL, NaN, integers of any length, objects of any
class, structures that contain themselves. None of that may fail a run that pydantic-ai itself finishes.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from collections.abc import Set as AbstractSet
from datetime import date, time, timedelta
from types import NoneType
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import to_json, to_jsonable_python

DEEPEST = 100
"""Levels of nesting that are kept; every JSON reader in use takes more."""
MOST_CONTAINERS = 10_000
"""Once this number of lists, dicts and objects of a value were kept, those that are met again are not kept again."""
MOST_VALUES = 500_000
"""Values that are kept of one value; lists, dicts and objects after them are not. Each takes up to two microseconds."""
MOST_MEETINGS = 10
"""Parts of an object that may be met again before it counts as tangled: each may double what pydantic writes of it."""
LONGEST_INTEGER_BITS = 12_000
"""Python refuses to read integers of more than 4,300 digits."""
_KEPT_IN_MESSAGES = (bytes, date, time, timedelta)
"""Values that pydantic-ai's own format writes in its own way."""
_SCALARS = (NoneType, bool, str, int, float)
_ARRAYS = (list, tuple, AbstractSet, deque)
_CONTAINERS = (Mapping, *_ARRAYS)


def storable(value: Any) -> Any:
    """Convert a value to values of JSON: text, numbers, lists and dicts with text as keys.

    - Text: the two halves of a surrogate pair are joined; a lone half and NUL become U+FFFD.
    - `NaN` and infinities become null.
    - Anything JSON has no form for is replaced by its type in angle brackets (`<pandas.DataFrame>`): objects,
      iterators, overlong integers, and what contains itself, is nested more than 100 levels deep, or would be written
      again and again because the parts of a large value refer to each other, or comes after 500,000 other values.
    - Messages of pydantic-ai stay messages, so that `ModelMessagesTypeAdapter` can write them.

    Never raises, and does not change the value.
    """
    return _text(value) if type(value) is str else _storable(value, frozenset(), _Met())


def as_json(value: Any) -> str:
    """Write a value as JSON text; `storable` converts values that have no JSON form."""
    try:
        return to_json(value, inf_nan_mode="null").decode()
    except BaseException:  # noqa: BLE001  (serializers of foreign classes raise anything)
        return to_json(storable(value), bytes_mode="base64", fallback=_name).decode()


class _Met:
    """The containers that were met in one value."""

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}
        """By their ids, which are theirs for as long as they are kept here."""
        self._times = 0
        self._room = MOST_VALUES
        self.tangled = False
        """Whether an object around is tangled, so that there is no need to look again."""

    def too_often(self, container: Any) -> bool:
        """Count a container, and return whether it is one too many."""
        again = id(container) in self._kept
        self._kept[id(container)] = container
        self._times += 1
        self._room -= 1 + (len(cast("Sized", container)) if isinstance(container, _CONTAINERS) else 0)
        return self._room < 0 or (again and self._times > MOST_CONTAINERS)


def _storable(value: Any, above: frozenset[int], met: _Met) -> Any:
    """`above` are the ids of the containers around the value."""
    try:
        return _converted(cast("Any", type(value)), value, above, met)
    except BaseException:  # noqa: BLE001  (foreign classes raise anything, whatever is asked of them)
        return _name(value)


def _converted(kind: type[Any], value: Any, above: frozenset[int], met: _Met) -> Any:
    if issubclass(kind, _SCALARS):
        return _scalar(kind, value)
    if issubclass(kind, Iterator) or id(value) in above or len(above) >= DEEPEST or met.too_often(value):
        return _name(value)
    inside = above | {id(value)}
    if _is_of_pydantic_ai(kind):
        return _message(value, inside, met)
    if issubclass(kind, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {_key(key): _storable(item, inside, met) for key, item in items}
    if issubclass(kind, _ARRAYS):
        return [_storable(item, inside, met) for item in value]
    return _converted_object(value, inside, met)


def _scalar(kind: type[Any], value: Any) -> Any:
    if value is None or kind is bool:
        return value
    if issubclass(kind, str):
        return _text(value)
    if issubclass(kind, int):
        return int(value) if int.bit_length(value) <= LONGEST_INTEGER_BITS else _name(value)
    return float(value) if math.isfinite(value) else None


def _converted_object(value: Any, inside: frozenset[int], met: _Met) -> Any:
    """Convert as pydantic does; if a part of the object cannot be converted, convert its fields one by one.

    Pydantic would read an iterator to its end, which some do not have, and write tangled values without end.
    """
    around = met.tangled
    met.tangled = around or _is_tangled(value)
    try:
        if not met.tangled:
            try:
                return _storable(to_jsonable_python(value, inf_nan_mode="null", bytes_mode="base64"), inside, met)
            except BaseException:  # Serializers of foreign classes raise anything.
                if _fields(value) is None:
                    raise
        return _storable(_fields(value), inside, met)
    finally:
        met.tangled = around


def _is_tangled(value: Any) -> bool:
    """Look for iterators, for parts that are met again and again and for too many, at most 100 levels deep.

    Nothing is looked at twice.
    """
    holds_more: dict[int, bool] = {}
    meetings = 0
    values = 0
    level = [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for item in level:
            if isinstance(item, _SCALARS):
                continue
            if isinstance(item, Iterator):
                return True
            if id(item) not in holds_more:
                inside = list(_inside(item))
                holds_more[id(item)] = bool(inside)
                below += inside
                values += len(inside)
                if values > MOST_VALUES:
                    return True
            elif holds_more[id(item)]:
                meetings += 1
                if meetings > MOST_MEETINGS:
                    return True
        level = below
    return False


def _inside(value: Any) -> Iterable[Any]:
    held = _fields(value) or value
    if isinstance(held, Mapping):
        return cast("Mapping[Any, Any]", held).values()
    return cast("Iterable[Any]", held) if isinstance(held, _ARRAYS) else ()


def _fields(value: Any) -> dict[str, Any] | None:
    """Read the fields of an object that lists them."""
    if isinstance(value, BaseModel):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _message(value: Any, inside: frozenset[int], met: _Met) -> Any:
    """Copy a message, or a part of one, with fields that can be stored."""
    copied = copy.copy(value)
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        if isinstance(held, _KEPT_IN_MESSAGES):
            continue
        said = _storable(held, inside, met)
        if said is None and held is not None and field.default is not dataclasses.MISSING:
            said = field.default  # A number that is none, where null may not stand.
        object.__setattr__(copied, field.name, said)
    return copied


def _is_of_pydantic_ai(kind: type[Any]) -> bool:
    return dataclasses.is_dataclass(kind) and any(base.__module__.startswith("pydantic_ai.") for base in kind.__mro__)


def _text(text: str) -> str:
    text = str.__str__(text)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\0", "\ufffd")


def _key(key: Any) -> str:
    if isinstance(key, str):
        return _text(key)
    try:
        (said,) = to_jsonable_python({key: None}, bytes_mode="base64")
    except BaseException:  # noqa: BLE001  (foreign classes raise anything)
        return _name(key)
    return _text(said)


def _name(value: Any) -> str:
    """Name the type of a value, to stand in its place."""
    kind = cast("type[Any]", type(value))
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return _text(f"<{name}>")
