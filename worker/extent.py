"""Count the values that a writer of JSON would meet, before it writes: some values have no end.

pydantic writes a shared part once for each path to it, and reads an iterator to its end. Thirty lists, each of which
holds the one before twice, are a thousand million values; and nothing else runs while they are written.

Sizes are in bytes: the fewest that a value can take as JSON, with a comma after it.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterator, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from functools import lru_cache
from itertools import islice
from typing import Any, cast

from pydantic import BaseModel, PlainSerializer, WrapSerializer

from agent_relay.worker.storable import storable

_SCALARS = frozenset({str, int, float, bool, type(None), bytes})
_ARRAYS = (list, tuple, AbstractSet, deque)
_SERIALIZERS = (PlainSerializer, WrapSerializer)
_ITEM_BYTES = 2
"""`1,`"""
_ENTRY_BYTES = 5
"""`"":1,`"""
_EMPTY_BYTES = 1
"""`[],` is one byte longer than `1,`; and `[1,1],` as long as two more `1,`."""
STEPS = 5_000
"""Lists, dicts and objects that are looked at before others may use the event loop."""


LARGE = 40_000
"""A value of more bytes is written by parts, or in a thread: pydantic takes up to a microsecond for each, and nothing
else runs meanwhile."""


class Endless(Exception):
    """A value is larger than it may be."""


async def finite(value: Any, most: int) -> tuple[Any, dict[int, int]]:
    """Return a value that ends when it is written; iterators in it are read, once, into lists.

    A value that contains itself is left as it is: pydantic refuses it at once. Others may use the event loop meanwhile.

    Args:
        value: anything.
        most: its largest size; shared parts count each time.

    Returns:
        The value, and the size of each list, dict or object of it, by their ids.

    Raises:
        Endless: it is larger.
        Exception: an exception of an iterator in it.
    """
    if type(value) in _SCALARS:
        return value, {}
    found, sizes = await count(value, most)
    if found:
        value = await _without_iterators(value, most)
        found, sizes = await count(value, most)
    if found:  # In a place where they cannot be replaced.
        value = await asyncio.to_thread(storable, value)
        _, sizes = await count(value, most)
    return value, sizes


async def written(value: Any, sizes: Mapping[int, int], write: Callable[[Any], bytes], most: int) -> bytes:
    """Write a large value as JSON, part by part; others may use the event loop in between.

    Args:
        value: what `finite` returned.
        sizes: what `finite` returned beside it.
        write: writes one part.
        most: in bytes; a longer one is not written to its end.
    """
    pieces: list[bytes] = []
    length = 0
    async for piece in _pieces(value, sizes, write):
        pieces.append(piece)
        length += len(piece)
        if length > most:
            break
    return b"".join(pieces)


async def _pieces(value: Any, sizes: Mapping[int, int], write: Callable[[Any], bytes]) -> AsyncGenerator[bytes]:
    size = sizes.get(id(value), 0)
    if size > LARGE:
        value = _opened(value)
    kind = cast("Any", type(value))
    if kind not in {list, tuple, dict} or size <= LARGE:
        await asyncio.sleep(0)
        yield write(value)
        return
    yield b"{" if kind is dict else b"["
    parts: list[Any] = list(value.items()) if kind is dict else list(value)
    group: list[Any] = []
    around, room = b"", LARGE
    for part in parts:
        size = _ENTRY_BYTES + sizes.get(id(part[1] if kind is dict else part), 0)
        if group and size > room:
            yield around + _bare(write, group, kind)
            await asyncio.sleep(0)
            group, around, room = [], b",", LARGE
        if size > LARGE:
            yield around + (_bare(write, [(part[0], None)], kind)[: -len(b"null")] if kind is dict else b"")
            async for piece in _pieces(part[1] if kind is dict else part, sizes, write):
                yield piece
            around = b","
        else:
            group.append(part)
            room -= size
    if group:
        yield around + _bare(write, group, kind)
    yield b"}" if kind is dict else b"]"


def _opened(value: Any) -> Any:
    """Return what pydantic writes as if it were that list or dict; the value itself, where it is written otherwise."""
    kind = cast("Any", type(value))
    if issubclass(kind, dict):
        return dict(value)
    if issubclass(kind, list | tuple | set | frozenset | deque):
        return list(value)
    if dataclasses.is_dataclass(kind) and not hasattr(kind, "__pydantic_serializer__"):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    return value


def _bare(write: Callable[[Any], bytes], group: list[Any], kind: type) -> bytes:
    """Write some parts of a list or dict without what stands around them."""
    return write(dict(group) if kind is dict else group)[1:-1]


async def count(value: Any, most: int) -> tuple[bool, dict[int, int]]:
    """Count each part once; return whether an iterator was met, and the size of each list, dict or object by its id.

    Raises:
        Endless: the value is larger than `most`.
    """
    if _is_iterator(value):
        return True, {}
    found = False
    kept: list[Any] = [value]  # So that no id is used again.
    parts, size = _parts(value, most)
    stack = [(id(value), parts, size)]
    sizes = {id(value): 0}  # 0 while it is being counted.
    steps = 0
    while stack:
        of, left, size = stack.pop()
        for part in left:
            known = sizes.get(id(part))
            if known is not None:
                size += known
            elif _is_iterator(part):
                found = True
            else:
                kept.append(part)
                parts, below = _parts(part, most)
                sizes[id(part)] = 0
                stack += [(of, left, size), (id(part), parts, below)]
                break
        else:
            sizes[of] = size
            if stack:
                above, left, before = stack.pop()
                stack.append((above, left, before + size))
        if size > most:
            raise Endless
        steps += 1
        if not steps % STEPS:
            await asyncio.sleep(0)
    return found, sizes


def _parts(value: Any, most: int) -> tuple[Iterator[Any], int]:
    """Return the parts of a value that may have parts themselves, and the size of all its parts as if they had none."""
    hold = _holder(cast("Any", type(value)))
    if hold is None:
        return iter(()), 0
    try:
        held, each = hold(value)
        size = len(held) * each or _EMPTY_BYTES
        return iter(() if size > most else [part for part in held if type(part) not in _SCALARS]), size
    except BaseException:  # noqa: BLE001  (foreign classes raise anything; so will they when they are written)
        return iter(()), 0


_Held = tuple[Collection[Any], int]
"""The parts of a value, and the fewest bytes that each of them takes."""


@lru_cache(maxsize=1000)
def _holder(kind: type[Any]) -> Callable[[Any], _Held] | None:
    """Say how to list the parts of a value of that type; None where it has none."""
    if issubclass(kind, _ARRAYS):
        return lambda value: (value, _ITEM_BYTES)
    if issubclass(kind, Mapping):
        return lambda value: (value.values(), _ENTRY_BYTES)
    if issubclass(kind, Enum):
        return lambda value: ((value.value,), 0)
    names = _written_fields(kind)
    if names is None:
        return None
    return lambda value: (list(_fields(value, names).values()), _ENTRY_BYTES)


def _written_fields(kind: type[Any]) -> tuple[str, ...] | None:
    """Name the fields of a dataclass or model that are written as they are, and not by a function; None for others."""
    is_model = issubclass(kind, BaseModel)
    if not is_model and not dataclasses.is_dataclass(kind):
        return None
    own = getattr(kind, "__pydantic_decorators__", None)
    if own is not None and own.model_serializers:
        return None
    known: Mapping[str, Any] = getattr(kind, "__pydantic_fields__", {})
    by_function = {name for of in (own.field_serializers.values() if own else ()) for name in of.info.fields}
    by_function |= {
        name
        for name, field in known.items()
        if field.exclude or any(isinstance(each, _SERIALIZERS) for each in field.metadata)
    }
    names = known if is_model else [field.name for field in dataclasses.fields(kind)]
    return tuple(name for name in names if name not in by_function)


def _fields(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    held = {name: getattr(value, name, None) for name in names}
    extra: dict[str, Any] | None = getattr(value, "__pydantic_extra__", None)
    return held | extra if extra else held


def _is_iterator(value: Any) -> bool:
    return _iterates(cast("Any", type(value)))


@lru_cache(maxsize=1000)
def _iterates(kind: type[Any]) -> bool:
    return issubclass(kind, Iterator)


async def _without_iterators(value: Any, most: int) -> Any:
    """Copy values that hold iterators, with lists in their place; shared parts stay shared.

    They are read in a thread, as each may wait. One that its own thread alone may read is read here.
    """
    copier = _Copier(most)
    copied = await asyncio.to_thread(copier.copy, value)
    for read, iterator in copier.unread:
        _extend(read, iterator, most)
    return copied


class _Copier:
    """Copies one value."""

    def __init__(self, most: int) -> None:
        self.unread: list[tuple[list[Any], Any]] = []
        """Lists that are still empty, and the iterators that are to fill them."""
        self._most = most
        self._copies: dict[int, Any] = {}
        self._kept: list[Any] = []
        """So that no id is used again."""

    def copy(self, value: Any) -> Any:
        """Copy a value; a value without iterators is not copied."""
        if type(value) in _SCALARS:
            return value
        if id(value) not in self._copies:
            self._kept.append(value)
            self._copies[id(value)] = value  # Where it contains itself.
            self._copies[id(value)] = self._read(value) if _is_iterator(value) else self._copy(value)
        return self._copies[id(value)]

    def _copy(self, value: Any) -> Any:
        held = _opened_up(value)
        if isinstance(held, list):
            items: list[Any] = held
            copied = [self.copy(part) for part in items]
            return copied if any(new is not old for new, old in zip(copied, items, strict=True)) else value
        changed = {key: new for key, old in held.items() if (new := self.copy(old)) is not old}
        if not changed:
            return value
        return held | changed if isinstance(value, Mapping) else _changed(value, held, changed)

    def _read(self, iterator: Any) -> list[Any]:
        read: list[Any] = []
        try:
            _extend(read, iterator, self._most)
        except Endless:
            raise
        except Exception:
            if read or isinstance(iterator, Generator):
                raise
            self.unread.append((read, iterator))
        return [self.copy(part) for part in read] if read else read


def _opened_up(value: Any) -> list[Any] | dict[Any, Any]:
    """Return the parts of a value, under their keys or names where they have any."""
    kind = cast("Any", type(value))
    try:
        if issubclass(kind, Mapping):
            return dict(value)
        if issubclass(kind, _ARRAYS):
            return list(value)
        names = _written_fields(kind)
        return [] if names is None else _fields(value, names)
    except BaseException:  # noqa: BLE001  (foreign classes raise anything; so will they when they are written)
        return []


def _changed(value: Any, held: dict[str, Any], changed: dict[str, Any]) -> Any:
    """Copy an object with other values in some of its fields; as a dict where its class cannot be copied."""
    try:
        copied = copy.copy(value)
        extra: dict[str, Any] | None = getattr(copied, "__pydantic_extra__", None)
        for name, new in changed.items():
            if extra is not None and name in extra:
                extra[name] = new
            else:
                object.__setattr__(copied, name, new)
    except Exception:  # noqa: BLE001  (copying runs code of the class)
        return held | changed
    return copied


def _extend(read: list[Any], iterator: Any, most: int) -> None:
    """Read an iterator to its end into a list that is empty."""
    read.extend(islice(iterator, most // _ITEM_BYTES + 1))
    if len(read) > most // _ITEM_BYTES:
        raise Endless
