"""How much a run may produce: its output, and what a tool gives to the model. A run that exceeds it ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from pydantic_ai.messages import BinaryContent, ModelRequest, ToolReturnPart

from shared.failures import FailureCode
from worker.storable import as_json, storable

ESCAPED = 8
"""Times that a response may be longer than an output: `\\u0041` is one byte, and a model may think before."""
LONGEST_NAME = 100
"""Characters of a tool's name that a message shows."""


class OverBudget(Exception):
    """A run produced more than it may; `code` says how it fails, and the message, which is for callers, why."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits in bytes of UTF-8 text."""

    output_bytes: int
    tool_result_bytes: int

    def check_output(self, text: str) -> None:
        """Check an output, or a partial one; nearly always its length alone decides.

        Raises:
            OverBudget: it is too large.
        """
        most = self.output_bytes
        if len(text) * 4 > most and (len(text) > most or len_utf8(text) > most):
            raise _output_too_large(f"The output is larger than {most} bytes, the limit of an output.")

    def check_written(self, characters: int) -> None:
        """Check how much the model has written in one response, whether any of it is a valid output or not.

        Raises:
            OverBudget: no output within the limit is so long, however it is escaped.
        """
        if characters > self.output_bytes * ESCAPED:
            raise _output_too_large(
                f"The model wrote more than {self.output_bytes * ESCAPED} characters in one response; the limit of an "
                f"output is {self.output_bytes} bytes."
            )

    def check_results(self, request: ModelRequest) -> None:
        """Check what tools give to the model before it is sent.

        Raises:
            OverBudget: the result of one of them is too large.
        """
        for part in request.parts:
            content = getattr(part, "content", None)
            size = _size_of(part, content)
            if size > self.tool_result_bytes:
                name = storable(str(getattr(part, "tool_name", None) or ""))[:LONGEST_NAME]
                what = f"The result of the tool {name}" if name else "What a tool or validator gave to the model"
                said = f"{what} has {size} bytes, and the limit is {self.tool_result_bytes}."
                raise OverBudget(FailureCode.AGENT_ERROR, said)


def _output_too_large(message: str) -> OverBudget:
    return OverBudget(FailureCode.OUTPUT_TOO_LARGE, message)


def len_utf8(text: str) -> int:
    """Return the number of bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _size_of(part: object, content: object) -> int:
    """Measure the content of a part of a message as the model is given it."""
    if content is None or isinstance(content, str):
        return len_utf8(content or "")
    if isinstance(part, ToolReturnPart):
        files = sum(len(file.data) for file in part.files if isinstance(file, BinaryContent))
        return files + len_utf8(_text_of(cast("ToolReturnPart[Any]", part)))
    items = cast("Iterable[object]", content) if isinstance(content, list | tuple) else [content]
    return sum(_size_of_item(item) for item in items)


def _size_of_item(item: object) -> int:
    if isinstance(item, str):
        return len_utf8(item)
    if isinstance(item, BinaryContent):
        return len(item.data)
    text: object = getattr(item, "content", None)  # `TextContent`
    return len_utf8(text) if isinstance(text, str) else 0


def _text_of(part: ToolReturnPart[Any]) -> str:
    try:
        return part.model_response_str()
    except Exception:  # noqa: BLE001  (serializers of foreign classes raise anything)
        return as_json(part.content)
