"""What was said before a query, where its caller holds the conversation. The run keeps it beside the query."""

from __future__ import annotations

from typing import Literal, TypedDict, cast


class Said(TypedDict):
    """A message of a conversation that the caller holds."""

    role: Literal["user", "assistant", "system", "instructions"]
    """`instructions` are for this run alone: a later run of the thread is not told them."""
    content: str


def said_of(stored: object) -> list[Said]:
    """Read what a run keeps of it; nothing where its caller holds no conversation."""
    return cast("list[Said]", stored) if isinstance(stored, list) else []
