"""Parameters of OpenAI's that an agent cannot follow: each is taken where it says what holds anyway, else refused."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, JsonValue
from pydantic_core import PydanticCustomError, to_json


def only(*values: JsonValue) -> AfterValidator:
    """Take null and these values, which change nothing."""

    def check(value: JsonValue) -> JsonValue:
        if value is not None and not any(value == each and type(value) is type(each) for each in _alike(values)):
            takes = " or ".join(map(_said, values)) or "null"
            raise PydanticCustomError(
                "unsupported_value", "The agent has its own settings: leave this out, or give {takes}", {"takes": takes}
            )
        return value

    return AfterValidator(check)


def _alike(values: tuple[JsonValue, ...]) -> list[JsonValue]:
    """Add to each whole number the same number as a fraction, as some clients write it."""
    return [*values, *(float(value) for value in values if isinstance(value, int) and not isinstance(value, bool))]


def _said(value: JsonValue) -> str:
    return to_json(value).decode()


Hint = JsonValue
"""A parameter without an effect on the answer: of whom, how it is billed, cached or kept."""

Nothing = Annotated[JsonValue, only()]
One = Annotated[JsonValue, only(1)]
Zero = Annotated[JsonValue, only(0)]
No = Annotated[JsonValue, only(False)]
Empty = Annotated[JsonValue, only([])]
NoTools = Annotated[JsonValue, only("none", "auto")]
Plain = Annotated[JsonValue, only({"type": "text"})]
