"""Earlier messages of a conversation that the caller holds. The run keeps them beside the query."""

from __future__ import annotations

from typing import Literal, TypedDict, cast


class Said(TypedDict):
    """A message of a conversation that the caller holds."""

    role: Literal["user", "assistant", "system", "instructions"]
    """`instructions` are for this run alone: later runs of the thread do not receive them."""
    content: str


def said_of(stored: object) -> list[Said]:
    """Read the messages that a run keeps; none if its caller holds no conversation."""
    return cast("list[Said]", stored) if isinstance(stored, list) else []
