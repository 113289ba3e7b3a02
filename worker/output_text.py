"""Write outputs as JSON text that validates against their type, so that a reader gets back the agent's values."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Union, cast, get_origin

from pydantic import AliasChoices, BaseModel, RootModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_ai._output import types_from_output_spec  # pyright: ignore[reportPrivateUsage]
from pydantic_ai.output import NativeOutput, OutputSpec, PromptedOutput, TextOutput, ToolOutput
from pydantic_core import to_json

from agent_relay.worker.storable import as_json

_Way = Callable[[TypeAdapter[Any], Any], bytes]
# fmt: off
_PLAIN = frozenset({
    "any", "bool", "dataclass", "dataclass-args", "dataclass-field", "date", "datetime", "default", "definition-ref",
    "definitions", "dict", "float", "frozenset", "int", "list", "literal", "model", "model-field", "model-fields",
    "none", "nullable", "set", "str", "tagged-union", "time", "timedelta", "tuple", "typed-dict", "typed-dict-field",
    "union", "uuid",
})
# fmt: on
"""Kinds of schema whose values are written as they are read; except a float that is no number."""
_OWN_SERIALIZER = "own serializer"
_UNREADABLE = object()
_NOT_OF_THE_SCHEMA = frozenset({"metadata", "default", "expected", "members", "serialization"})
_WRITES_OTHERWISE = frozenset(
    {"computed_fields", "ser_json_bytes", "ser_json_temporal", "ser_json_timedelta", "validate_by_alias"}
)


class OutputText:
    """Writes the outputs of one agent."""

    def __init__(self, output_type: OutputSpec[Any]) -> None:
        """Check the type once: the outputs of most types need no further check.

        Raises:
            Exception: pydantic has no schema of the type; it raises several kinds.
        """
        types = tuple(types_from_output_spec(output_type))
        self._adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", Union)[types])
        kinds = set(_kinds(self._adapter.core_schema))
        self._sure = kinds <= _PLAIN
        self.may_be_endless = not kinds <= _PLAIN - {"any", "definition-ref"} or _is_made_by_code(output_type)
        """Whether neither the type nor the model's own text limits the length of the written output."""
        self._may_hold_no_number = not kinds.isdisjoint({"any", "float"})
        self._serializes_itself = _OWN_SERIALIZER in kinds
        self._ways = (_declared, _round_trip, _by_name, *(() if self._serializes_itself else (_plain, _base64)))

    def __call__(self, output: Any, *, partial: bool = False) -> str:
        """Write an output, in the first way whose text is read as an equal value; else, in the first with a valid text.

        If there is none, the type's own serializers write text that its validators refuse: that text is used. Values
        without a JSON form are repaired by `storable`.
        """
        text = self._write(_declared, output)
        lost = self._may_hold_no_number and text is not None and b"null" in text and _holds_no_number(_unfolded(output))
        if text is not None and self._sure and not lost:
            return text.decode()
        valid: list[bytes] = []
        written = [] if text is None else [text]
        for way in reversed(self._ways) if lost else self._ways:
            text = self._write(way, output)
            if text is None:
                continue
            written.append(text)
            read = self._read(text, partial=partial)
            if _same(read, output):
                return text.decode()
            if read is not _UNREADABLE:
                valid.append(text)
        return next((text.decode() for text in [*valid, *written]), None) or self._mended(output)

    def _mended(self, output: Any) -> str:
        try:
            return as_json(output if self._serializes_itself else _unfolded(output))
        except RecursionError:  # It contains itself.
            return as_json(output)

    def _write(self, way: _Way, output: Any) -> bytes | None:
        try:
            return way(self._adapter, output)
        except Exception:  # noqa: BLE001  (serializers of foreign classes raise anything)
            return None

    def _read(self, text: bytes, *, partial: bool) -> Any:
        allowed: Literal["trailing-strings"] | bool = "trailing-strings" if partial else False
        try:
            return self._adapter.validate_json(text, experimental_allow_partial=allowed)
        except Exception:  # noqa: BLE001  (beside what pydantic finds, a validator of the agent's own may raise anything)
            return _UNREADABLE


def _is_made_by_code(output_type: Any) -> bool:
    """Return whether a function makes an output of the model's text."""
    match output_type:
        case NativeOutput() | PromptedOutput():
            return _is_made_by_code(cast("Any", output_type).outputs)
        case ToolOutput():
            return _is_made_by_code(cast("Any", output_type).output)
        case list() | tuple():
            return any(map(_is_made_by_code, cast("list[Any]", output_type)))
        case _:
            is_a_type = isinstance(output_type, type) or get_origin(output_type) is not None
            return (callable(output_type) and not is_a_type) or isinstance(output_type, TextOutput)


def _same(read: Any, output: Any) -> bool:
    """Return whether the read value equals the written one, with NaN equal to NaN."""
    try:
        return bool(read == output) or repr(read) == repr(output)
    except Exception:  # noqa: BLE001  (how values of an agent's own types compare is theirs)
        return False


def _declared(adapter: TypeAdapter[Any], output: Any) -> bytes:
    return adapter.dump_json(output, by_alias=True, warnings=False)


def _round_trip(adapter: TypeAdapter[Any], output: Any) -> bytes:
    return adapter.dump_json(output, by_alias=True, round_trip=True, warnings=False)


def _by_name(adapter: TypeAdapter[Any], output: Any) -> bytes:
    return adapter.dump_json(output, by_alias=False, round_trip=True, warnings=False)


def _plain(_adapter: TypeAdapter[Any], output: Any) -> bytes:
    return to_json(_unfolded(output), inf_nan_mode="strings")


def _base64(_adapter: TypeAdapter[Any], output: Any) -> bytes:
    return to_json(_unfolded(output), inf_nan_mode="strings", bytes_mode="base64")


def _unfolded(value: Any) -> Any:
    """Convert models to the values from which their fields are read; excluded fields stay out."""
    fields: dict[str, FieldInfo] = getattr(cast("Any", type(value)), "__pydantic_fields__", {})
    match value:
        case RootModel():
            return _unfolded(cast("Any", value).root)
        case BaseModel():
            extra = value.model_extra or {}
            return _fields(value, fields) | {key: _unfolded(of) for key, of in extra.items()}
        case dict():
            return {key: _unfolded(of) for key, of in cast("dict[Any, Any]", value).items()}
        case list() | tuple() | set() | frozenset() | deque():
            return [_unfolded(of) for of in cast("list[Any]", value)]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return _fields(value, {field.name: fields.get(field.name) for field in dataclasses.fields(value)})
        case _:
            return value


def _fields(value: Any, fields: Mapping[str, FieldInfo | None]) -> dict[str, Any]:
    """Say the fields of a model, each under the name that it is read from."""
    return {
        _read_from(name, field): _unfolded(getattr(value, name))
        for name, field in fields.items()
        if not (field and field.exclude) and hasattr(value, name)
    }


def _read_from(name: str, field: FieldInfo | None) -> str:
    alias = field and field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return next((choice for choice in choices if isinstance(choice, str)), name)


def _holds_no_number(value: Any) -> bool:
    """Tell whether a float in it is infinite or not a number."""
    match value:
        case float():
            return not math.isfinite(value)
        case dict():
            return any(map(_holds_no_number, cast("dict[Any, Any]", value).values()))
        case list():
            return any(map(_holds_no_number, cast("list[Any]", value)))
        case _:
            return False


def _kinds(schema: Any) -> Iterator[str]:
    """List the kinds of schemas that a core schema is made of, and what in it makes it write other than it reads."""
    if isinstance(schema, list | tuple):
        for item in cast("list[Any]", schema):
            yield from _kinds(item)
    elif isinstance(schema, dict):
        schema = cast("dict[str, Any]", schema)
        yield from _traits(schema)
        for key, value in schema.items():
            if key not in _NOT_OF_THE_SCHEMA:
                yield from _kinds(value)


def _traits(schema: dict[str, Any]) -> Iterator[str]:
    """List the kinds in one schema."""
    if isinstance(kind := schema.get("type"), str):
        yield kind
        if schema.get("validation_alias") != schema.get("serialization_alias"):
            yield "two aliases"
    yield from (key for key in schema.keys() & _WRITES_OTHERWISE if schema[key] not in (None, [], True))
    if isinstance(own := schema.get("serialization"), dict):
        yield _OWN_SERIALIZER if "function" in own else "serialization"
