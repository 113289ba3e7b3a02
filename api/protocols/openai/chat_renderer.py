"""A run as the chunks of a chat completion."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from agent_relay.api.protocols.openai.errors import CANCELLED, error_of_run
from agent_relay.api.protocols.openai.growing_text import GrowingText
from agent_relay.api.streaming.run_feed import Event, Text
from agent_relay.api.streaming.sse_and_ndjson import Framing, one_line
from agent_relay.shared.failure_codes import FailureCode
from agent_relay.shared.rows import RunEnd, RunRow
from agent_relay.shared.schemas import RunError, error_of, whole_usage

WAITS = "The agent waits for an answer, which a chat completion cannot carry: the run was cancelled. Use /v1/responses."
"""Said where a run comes to wait."""
SEPARATOR = "\n\n"
"""Between a text that the agent has given up, which a reader has been sent, and the one that takes its place."""


def completion_id(row: RunEnd) -> str:
    """Name a run as a chat completion."""
    return f"chatcmpl-{row.id.hex}"


def usage_of_completion(stored: object) -> dict[str, Any]:
    """Say what a run used as a chat completion does."""
    used = {kind: int(count or 0) for kind, count in whole_usage(stored).items()}
    return {
        "prompt_tokens": used["input_tokens"],
        "completion_tokens": used["output_tokens"],
        "total_tokens": used["input_tokens"] + used["output_tokens"],
        "prompt_tokens_details": {"cached_tokens": used["cache_read_tokens"]},
    }


class ChatRenderer:
    """Writes a run as chunks. What was sent cannot be taken back, so a structured output comes whole, at the end.

    A text that the agent gives up, for a tool call or because another worker begins anew, stays where it is; the new
    one follows it.
    """

    __slots__ = ("_head", "_include_usage", "_newest", "_streams", "_text", "waits")

    def __init__(self, run: RunRow, *, include_usage: bool) -> None:
        self._head = {
            "id": completion_id(run),
            "object": "chat.completion.chunk",
            "created": int(run.created_at.timestamp()),
            "model": run.agent_type,
        }
        self._include_usage = include_usage
        self._streams = run.text_output
        self._text = GrowingText()
        self._newest = ""
        self.waits = False
        """Whether the stream has ended because the run waits."""

    @property
    def media_type(self) -> str:
        """Server-sent events."""
        return Framing.SSE.value

    @property
    def opening(self) -> bytes:
        """Nothing: clients do not come back to such a stream."""
        return b""

    @property
    def keepalive(self) -> bytes:
        """A comment."""
        return Framing.SSE.keepalive

    def render(self, item: Event | Text) -> bytes:
        """Write the chunks of an item."""
        if isinstance(item, Text):
            return b"" if item.part else self._show(item.whole)
        frames = b""
        match item.name:
            case "message_created":
                frames = self._chunk({"role": "assistant", "content": ""})
            case "message_started" | "tool_call" | "tool_result":
                self._text.interrupt()
            case "message_complete":
                frames = self._rest() + self._chunk({}, finish_reason="stop") + self._usage(item.fields["usage"])
            case "error":
                frames = _frame({"error": error_of_run(error_of(item.fields["error"]))})
            case "cancelled":
                frames = _frame({"error": error_of_run(CANCELLED)})
            case "pause":
                self.waits = True
                waits = RunError(code=FailureCode.CANCELLED, message=WAITS, retryable=False)
                frames = _frame({"error": error_of_run(waits)}) + _DONE
            case "done":
                frames = _DONE
            case _:
                pass
        return frames

    def _show(self, text: str) -> bytes:
        self._newest = text
        return self._sent(text, is_final=False) if self._streams else b""

    def _rest(self) -> bytes:
        return self._sent(self._newest, is_final=True)

    def _sent(self, text: str, *, is_final: bool) -> bytes:
        more = self._text.more(text)
        if more is None and self._text.may_restart(is_final=is_final):
            self._text = GrowingText(text)
            more = SEPARATOR + text
        if not more:
            return b""
        return self._chunk({"content": more})

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _frame({**self._head, "choices": [choice], **({"usage": None} if self._include_usage else {})})

    def _usage(self, used: object) -> bytes:
        if not self._include_usage:
            return b""
        return _frame({**self._head, "choices": [], "usage": usage_of_completion(used)})


_DONE = b"data: [DONE]\n\n"


def _frame(said: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % one_line(to_json(said))
