"""Limits of what a run may produce: its output, and the results of tools. A run that exceeds one ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic_ai.messages import (
    MULTI_MODAL_CONTENT_TYPES,
    BinaryContent,
    ModelRequest,
    ToolReturnPart,
    UserPromptPart,
    tool_return_ta,
)

from agent_relay.shared.failure_codes import FailureCode
from agent_relay.worker.execution.file_references import file_id_of
from agent_relay.worker.extent import LARGE, Endless, finite, written
from agent_relay.worker.storable import as_json, storable

ESCAPED = 8
"""Times that a response may be longer than an output: `\\u0041` is one byte, and a model may think before."""
LARGE_TOGETHER = 5 * LARGE
"""Results that are larger together are written once, too: a model's request holds all of them."""
MOST_PIECES = 20_000
"""Pieces of content (texts, files) that a tool may give to the model beside its result."""
LONGEST_NAME = 100
"""Characters of a tool's name that a message shows."""


class OverBudget(Exception):
    """A run exceeded a limit; `code` is its failure code, and the message is for callers."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Budget:
    """Limits of one run, in bytes of UTF-8 text."""

    output_bytes: int
    tool_result_bytes: int
    _structured_bytes: int = 0
    """Size of the results that are lists, dicts and objects still."""

    def check_output(self, text: str) -> None:
        """Check an output, or a partial one; nearly always its length alone decides.

        Raises:
            OverBudget: it is too large.
        """
        most = self.output_bytes
        if len(text) * 4 > most and (len(text) > most or len_utf8(text) > most):
            raise _output_too_large(f"The output is larger than {most} bytes, the limit of an output.")

    def check_written(self, characters: int) -> None:
        """Check the length of a model's response, whether it is a valid output or not.

        Raises:
            OverBudget: it is longer than any output within the limit, with all its escapes.
        """
        if characters > self.output_bytes * ESCAPED:
            raise _output_too_large(
                f"The model wrote more than {self.output_bytes * ESCAPED} characters in one response; the limit of an "
                f"output is {self.output_bytes} bytes."
            )

    async def finite_output(self, output: Any) -> tuple[Any, bool]:
        """Return an output that ends when it is written, and whether it is large; see `finite`.

        Raises:
            OverBudget: it does not.
        """
        try:
            finite_output, sizes = await finite(output, self.output_bytes)
        except Endless as error:
            said = f"The output has more values than {self.output_bytes} bytes, the limit of an output, can hold."
            raise _output_too_large(said) from error
        return finite_output, sizes.get(id(finite_output), 0) > LARGE

    async def check_result(self, part: Any) -> None:
        """Check that a tool's result has an end before it is written; see `finite`.

        A large one becomes the text that the model receives: pydantic-ai would write it again and again.

        Raises:
            OverBudget: it does not.
        """
        try:
            content, sizes = await finite(part.content, self.tool_result_bytes)
        except Endless as error:
            said = f"{_what(part)} has more values than {self.tool_result_bytes} bytes, the limit, can hold, or no end."
            raise OverBudget(FailureCode.AGENT_ERROR, said) from error
        part.content = content
        if type(part) is not ToolReturnPart:
            return
        if not _holds_files(content):
            part.content = await self._compact(content, sizes)
        elif isinstance(content, list | tuple):
            items = cast("Sequence[Any]", content)
            self._check_pieces(part, items)
            part.content = [item if _is_file(item) else await self._compact(item, sizes) for item in items]

    async def _compact(self, value: Any, sizes: Mapping[int, int]) -> Any:
        """Return a value as text, where it is large or many others are kept as they are."""
        size = sizes.get(id(value), 0)
        if size <= LARGE and self._structured_bytes + size <= LARGE_TOGETHER:
            self._structured_bytes += size
            return value
        try:
            return (await written(value, sizes, _write, self.tool_result_bytes)).decode()
        except Exception:  # noqa: BLE001  (what cannot be written is refused where pydantic-ai writes it)
            return value

    def check_results(self, request: ModelRequest) -> None:
        """Check results of tools before they are sent to the model.

        Raises:
            OverBudget: one of them is too large.
        """
        for part in request.parts:
            content = getattr(part, "content", None)
            if isinstance(part, UserPromptPart) and not isinstance(content, str):
                self._check_pieces(part, part.content)
            size = _size_of(part, content)
            if size > self.tool_result_bytes:
                said = f"{_what(part)} has {size} bytes, and the limit is {self.tool_result_bytes}."
                raise OverBudget(FailureCode.AGENT_ERROR, said)

    def _check_pieces(self, part: object, pieces: Sequence[Any]) -> None:
        if len(pieces) > MOST_PIECES:
            said = f"{_what(part)} has {len(pieces)} texts and files, and the limit is {MOST_PIECES}."
            raise OverBudget(FailureCode.AGENT_ERROR, said)


def _write(value: Any) -> bytes:
    return tool_return_ta.dump_json(value, by_alias=True)


def _holds_files(content: Any) -> bool:
    """Return whether there is a file in a tool's result; `part.files` takes a second for a million numbers."""
    items = cast("list[Any]", content) if isinstance(content, list | tuple) else [content]
    kinds: set[type] = set(map(type, items))
    return any(issubclass(kind, MULTI_MODAL_CONTENT_TYPES) for kind in kinds)


def _is_file(item: Any) -> bool:
    return isinstance(item, MULTI_MODAL_CONTENT_TYPES)


def _what(part: object) -> str:
    name = storable(str(getattr(part, "tool_name", None) or ""))[:LONGEST_NAME]
    return f"The result of the tool {name}" if name else "What a tool or validator gave to the model"


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
        return 0 if file_id_of(item) else len(item.data)  # An attachment has limits of its own.
    text: object = getattr(item, "content", None)  # `TextContent`
    return len_utf8(text) if isinstance(text, str) else 0


def _text_of(part: ToolReturnPart[Any]) -> str:
    try:
        return part.model_response_str()
    except Exception:  # noqa: BLE001  (serializers of foreign classes raise anything)
        return as_json(part.content)
