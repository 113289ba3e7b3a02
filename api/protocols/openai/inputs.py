"""What a response is asked with: messages, or the results of calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator
from pydantic_core import PydanticCustomError

from agent_relay.api.attachments import Placed
from agent_relay.api.problems import invalid
from agent_relay.api.protocols.openai.content import Text, TextAndFiles, all_files, check_files
from agent_relay.api.protocols.openai.parameters import Hint
from agent_relay.api.schemas import Request as Schema
from agent_relay.shared.runs.said import Said


class InputItem(Schema):
    """A message, or the result of a call. Answers of this service may be sent back as they came."""

    type: Literal["message", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: TextAndFiles = None
    call_id: str | None = None
    output: Text = None

    id: Hint = None
    status: Hint = None
    phase: Hint = None

    @model_validator(mode="after")
    def _whole(self) -> InputItem:
        needed = ("role", "content") if self.type == "message" else ("call_id", "output")
        if any(getattr(self, name) is None for name in needed):
            raise PydanticCustomError("missing", "A {type} has {needed}", {"type": self.type, "needed": needed})
        check_files(self.role, self.content)
        return self

    @property
    def said(self) -> Said:
        """The message as a run keeps it."""
        role = "system" if self.role is None or self.role == "developer" else self.role
        return {"role": role, "content": self.text}

    @property
    def text(self) -> str:
        """What the message says beside its files."""
        return self.content.text if self.content is not None else ""


def _items_of(value: object) -> object:
    """Make a list of a text."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Input = Annotated[list[InputItem], BeforeValidator(_items_of)]


def query_of(items: Sequence[InputItem]) -> tuple[str, list[Said]]:
    """Return what the last message asks, and what was said before it.

    Raises:
        Refused: 422, the last message asks nothing.
    """
    if not items:
        raise invalid("/input", "missing", "The input asks nothing")
    number, last = len(items) - 1, items[-1]
    if last.role != "user":
        raise invalid(f"/input/{number}/role", "unsupported_value", "The last message is the user's")
    if not last.text:
        raise invalid(f"/input/{number}/content", "missing", "The last message asks nothing: it needs a text")
    return last.text, [item.said for item in items[:-1] if item.text]


def files_of(items: Sequence[InputItem]) -> list[Placed]:
    """List the files of all messages."""
    return all_files([(f"/input/{number}/content", item.content) for number, item in enumerate(items)])


def outputs_of(items: Sequence[InputItem]) -> list[InputItem]:
    """Return the results of calls, which come alone.

    Raises:
        Refused: 422, there is something else beside them.
    """
    outputs = [item for item in items if item.type == "function_call_output"]
    if outputs and len(outputs) < len(items):
        number = next(number for number, item in enumerate(items) if item.type == "message")
        raise invalid(f"/input/{number}", "unsupported_value", "Results of calls come without messages")
    return outputs


def check_size(pointer: str, history: Sequence[Said], most_bytes: int) -> None:
    """See that what was said before is not more than an agent is told.

    Raises:
        Refused: 422, it is.
    """
    size = sum(len(said["content"].encode()) for said in history)
    if size > most_bytes:
        message = f"The messages before the last have {size} bytes; at most {most_bytes}"
        raise invalid(pointer, "context_length_exceeded", message)
