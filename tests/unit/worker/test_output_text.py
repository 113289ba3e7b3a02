"""Every text that is told of an output validates against its type, and says what the output says."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import pydantic.dataclasses
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    RootModel,
    SecretStr,
    SerializeAsAny,
    TypeAdapter,
    computed_field,
    field_serializer,
    field_validator,
)
from pydantic_ai import Agent, ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.output import NativeOutput, StructuredDict, ToolOutput
from typing_extensions import TypedDict

from agent_relay.worker.output_text import OutputText
from tests.support.in_process import ask


class Numbers(BaseModel):
    """An output type."""

    a: float
    b: float | None = None
    c: list[float] = []


class TwoAliases(BaseModel):
    """An output type."""

    a: int = Field(validation_alias="in", serialization_alias="out")


class ChoiceOfAliases(BaseModel):
    """An output type."""

    a: int = Field(validation_alias=AliasChoices("first", "second"), serialization_alias="third", default=1)


class ByName(BaseModel):
    """An output type."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=False)
    a: int = Field(alias="A")


class Computed(BaseModel):
    """An output type."""

    model_config = ConfigDict(extra="forbid")
    a: int

    @computed_field
    @property
    def twice(self) -> int:
        """What the type itself refuses to read."""
        return 2 * self.a


class InBase64(BaseModel):
    """An output type."""

    model_config = ConfigDict(val_json_bytes="base64")
    data: bytes


class Nested(BaseModel):
    """An output type."""

    inner: TwoAliases
    numbers: Numbers


class Base(BaseModel):
    """An output type."""

    kind: str = "base"


class Sub(Base):
    """An output type."""

    more: int = 1


class Holds(BaseModel):
    """An output type."""

    model_config = ConfigDict(extra="forbid")
    held: SerializeAsAny[Base]


class Colour(enum.Enum):
    """An output type."""

    RED = "red"
    BLUE = "blue"


class Point(NamedTuple):
    """An output type."""

    x: float
    name: str


class Named(TypedDict, total=False):
    """An output type."""

    a: Annotated[str, Field(alias="A")]
    n: float


@dataclasses.dataclass
class Plain:
    """An output type."""

    a: float
    when: dt.datetime


@pydantic.dataclasses.dataclass
class Checked:
    """An output type."""

    a: Annotated[int, Field(validation_alias="in", serialization_alias="out")]
    b: float = math.nan


class Roots(RootModel[list[float]]):
    """An output type."""


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    """An output type."""

    content: T


class Cat(BaseModel):
    """An output type."""

    kind: Literal["cat"]
    weight: float


class Dog(BaseModel):
    """An output type."""

    kind: Literal["dog"]
    barks: bool


class Odd(BaseModel):
    """An output type."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    money: Decimal
    any_number: Decimal = Field(allow_inf_nan=True)
    when: dt.datetime
    long: dt.timedelta
    colours: set[Colour]
    id: UUID
    parsed: Json[list[int]]
    secret: SecretStr
    packed: Base64Bytes
    by_number: dict[int, str]


class EpochSeconds(BaseModel):
    """An output type."""

    when: dt.datetime

    @field_serializer("when")
    def seconds(self, when: dt.datetime) -> float:
        """Write what can be read, in a way of its own."""
        return when.timestamp()


class Halves(BaseModel):
    """A type that reads otherwise than it writes, so that what it reads is changed each time."""

    a: int

    @field_validator("a")
    @classmethod
    def half(cls, a: int) -> int:
        """Change what is read."""
        return abs(a)


WHEN = "2026-11-27T12:00:00Z"
ODD = json.dumps(
    {
        "money": "1.10",
        "any_number": "NaN",
        "when": WHEN,
        "long": "PT1H",
        "colours": ["red", "blue"],
        "id": "00000000-0000-0000-0000-000000000001",
        "parsed": "[1, 2]",
        "secret": "s",
        "packed": "/+8=",
        "by_number": {"1": "one"},
    }
)
CASES: list[tuple[Any, str]] = [
    (float, "NaN"),
    (float, "-Infinity"),
    (float | None, "NaN"),
    (Numbers, '{"a": NaN, "b": Infinity, "c": [1.5, -Infinity]}'),
    (Numbers, '{"a": 1, "b": null}'),
    (TwoAliases, '{"in": 1}'),
    (ChoiceOfAliases, '{"second": 2}'),
    (ByName, '{"a": 1}'),
    (Computed, '{"a": 2}'),
    (InBase64, '{"data": "/+8="}'),
    (Nested, '{"inner": {"in": 1}, "numbers": {"a": Infinity, "b": NaN}}'),
    (Holds, '{"held": {"kind": "x"}}'),
    (Colour, '"red"'),
    (Point, '[NaN, "here"]'),
    (Named, '{"A": "said", "n": 1.5}'),
    (Plain, f'{{"a": NaN, "when": "{WHEN}"}}'),
    (Checked, '{"in": 3}'),
    (Roots, "[1, NaN]"),
    (Box[float], '{"content": NaN}'),
    (Box[TwoAliases], '{"content": {"in": 1}}'),
    (Cat | Dog, '{"kind": "dog", "barks": true}'),
    (list[Cat | Dog], '[{"kind": "cat", "weight": NaN}]'),
    (bytes, '"abc"'),
    (set[int], "[1, 2]"),
    (tuple[int, str], '[1, "a"]'),
    (Decimal, '"1.10"'),
    (EpochSeconds, f'{{"when": "{WHEN}"}}'),
    (Halves, '{"a": -4}'),
    (Odd, ODD),
]


def same(first: Any, second: Any) -> bool:
    """Compare outputs, in which NaN equals NaN."""
    return first == second or repr(first) == repr(second)


@pytest.mark.parametrize(("of", "said"), CASES, ids=lambda case: getattr(case, "__name__", str(case))[:40])
def test_an_output_is_read_as_what_was_said(of: Any, said: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(of)
    output = adapter.validate_json(said)

    text = OutputText(of)(output)

    json.loads(text, parse_constant=pytest.fail)
    assert same(adapter.validate_json(text), output)


@pytest.mark.parametrize(
    ("of", "said"), [case for case in CASES if case[0] is not Roots], ids=lambda case: str(case)[:40]
)
async def test_every_partial_of_an_agent_validates(of: Any, said: str) -> None:
    """Whatever the model says, it is wrapped into an object by the output tool where it is none."""

    async def stream(_messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
        schema = info.output_tools[0].parameters_json_schema
        arguments = f'{{"response": {said}}}' if list(schema.get("properties", ())) == ["response"] else said
        yield {0: DeltaToolCall(name=info.output_tools[0].name)}
        for start in range(0, len(arguments), 3):
            yield {0: DeltaToolCall(json_args=arguments[start : start + 3])}

    heard = await ask(Agent(FunctionModel(stream_function=stream), output_type=ToolOutput(of)))

    adapter: TypeAdapter[Any] = TypeAdapter(of)
    assert same(adapter.validate_json(heard.texts[-1]), adapter.validate_json(said))
    for text in heard.texts:
        adapter.validate_json(text, experimental_allow_partial="trailing-strings")


def test_what_is_left_out_or_masked_is_not_told() -> None:
    class Masked(BaseModel):
        pin: int
        secret: str = Field(exclude=True)

        @field_serializer("pin")
        def stars(self, _pin: int) -> str:
            return "****"

    assert OutputText(Masked)(Masked(pin=1234, secret="s")) == '{"pin":"****"}'


def test_where_anything_may_stand_a_number_that_is_none_is_told_in_words() -> None:
    assert OutputText(dict[str, Any])({"a": math.nan, "b": [-math.inf, None]}) == '{"a":"NaN","b":["-Infinity",null]}'


def test_bytes_that_are_no_text_are_told_in_base64() -> None:
    assert OutputText(bytes)(b"\xff\xef") == '"_-8="'


def test_an_output_that_a_validator_has_made_something_else_of_is_told_as_that() -> None:
    assert OutputText(Numbers)({"made": 1}) == '{"made":1}'


def test_a_schema_from_elsewhere_is_served() -> None:
    of = StructuredDict({"type": "object", "properties": {"a": {"type": "number"}}})

    assert OutputText(of)({"a": math.nan}) == '{"a":"NaN"}'
    assert OutputText(NativeOutput([Numbers, of]))(Numbers(a=1)) == '{"a":1.0,"b":null,"c":[]}'


FLOATS = st.floats() | st.none()


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.text(max_size=5), FLOATS), FLOATS, st.lists(st.floats()), st.text())
def test_any_number_and_any_text_come_through(
    by_name: dict[str, float | None], one: float | None, more: list[float], text: str
) -> None:
    class Anything(BaseModel):
        by_name: dict[str, float | None]
        one: float | None
        more: list[float]
        text: str
        pair: tuple[float | None, str]

    output = Anything(by_name=by_name, one=one, more=more, text=text, pair=(one, text))

    read = Anything.model_validate_json(OutputText(Anything)(output))

    assert repr(read) == repr(output)
