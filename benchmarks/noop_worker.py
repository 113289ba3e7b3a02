"""A worker whose agents answer at once, without a model: what is left of a run is what the queue costs.

Only the drive of the agent is replaced; all before it and after it is the product's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_ai.messages import ModelMessage

from worker import attempt
from worker.__main__ import main
from worker.answer import Answer, Answered, Listener
from worker.catalog import Offer

TEXT = "done"


class AtOnce(Answer):
    """An answer that needs no agent."""

    def __init__(self, offer: Offer, listener: Listener, *arguments: Any, **options: Any) -> None:
        super().__init__(offer, listener, *arguments, **options)
        self._told = listener

    async def write(self, query: str, history: Sequence[ModelMessage], deps: Any) -> Answered:  # noqa: ARG002
        """Say a word."""
        self._told.show(TEXT)
        return Answered(TEXT, [], None)


if __name__ == "__main__":
    attempt.Answer = AtOnce
    main()
