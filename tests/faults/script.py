"""What is asked and what is answered: a query says what its answer is to be, an answer says which attempt gave it.

So whoever reads a partial, an output or a message can tell whose it is, and whether it is whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

TELLER, CLERK, POISON = "teller", "clerk", "poison"
AGENTS = {
    TELLER: "tests.faults.agents:teller",
    CLERK: "tests.faults.agents:clerk",
    POISON: "tests.support.agents:poison",
}

_WORDS = ("and", "so", "zażółć", "it", "goes", "🙂", "on", "שלום", "for", "a", "while")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query in the words of the script."""

    nonce: str
    """Nobody else asks this."""
    words: int
    """How long the answer is."""
    pace_seconds: float
    """Time between two words."""
    padding: int = 0
    """Characters that each word has more, for long texts."""

    def __str__(self) -> str:
        return f"nonce={self.nonce} words={self.words} pace_seconds={self.pace_seconds} padding={self.padding}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a query."""
        said = dict(item.split("=", 1) for item in text.split())
        return cls(
            nonce=said["nonce"],
            words=int(said["words"]),
            pace_seconds=float(said["pace_seconds"]),
            padding=int(said["padding"]),
        )


def speaker(run_id: UUID | str, attempt: int) -> str:
    """Name an attempt, as its answers do."""
    return f"{run_id}/{attempt}"


def told_text(who: str, query: Query) -> str:
    """Say what the teller answers."""
    words = (_WORDS[number % len(_WORDS)] + "." * query.padding for number in range(query.words))
    return " ".join([who, query.nonce, *words])


def filled_form(who: str, query: Query) -> dict[str, Any]:
    """Say what the clerk answers."""
    return {"who": who, "nonce": query.nonce, "words": query.words, "text": told_text(who, query)}


def is_whole(agent_type: str, text: str, who: str, query: Query) -> bool:
    """Tell whether this is all of that attempt's answer."""
    if agent_type == CLERK:
        return json.loads(text) == filled_form(who, query)
    return text == told_text(who, query)


def is_partial(agent_type: str, text: str, who: str, query: Query) -> bool:
    """Tell whether this is a beginning of that attempt's answer, or all of it."""
    if agent_type != CLERK:
        return told_text(who, query).startswith(text)
    whole = filled_form(who, query)
    part = json.loads(text)
    return (
        isinstance(part, dict)
        and list(part) == list(whole)[: len(part)]  # pyright: ignore[reportUnknownArgumentType]
        and all(str(whole[name]).startswith(str(value)) for name, value in part.items())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    )
