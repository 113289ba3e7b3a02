"""A worker whose agents answer at once, without a model: what is left of a run is what the queue costs.

Only the drive of the agent is replaced; all before it and after it is the product's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_ai.messages import ModelMessage

from agent_relay.worker.__main__ import main
from agent_relay.worker.catalog import AS_THE_AGENT_HAS_IT, RegisteredAgent, RunOptions
from agent_relay.worker.execution import attempt
from agent_relay.worker.execution.answer import Answer, Answered, Listener, Prompt

TEXT = "done"


class AtOnce(Answer):
    """An answer that needs no agent."""

    def __init__(self, offer: RegisteredAgent, listener: Listener, *arguments: Any, **options: Any) -> None:
        super().__init__(offer, listener, *arguments, **options)
        self._writer = listener

    async def write(
        self,
        query: Prompt,  # noqa: ARG002
        history: Sequence[ModelMessage],  # noqa: ARG002
        deps: Any,  # noqa: ARG002
        chosen: RunOptions = AS_THE_AGENT_HAS_IT,  # noqa: ARG002
    ) -> Answered:
        """Say a word."""
        self._writer.show(TEXT)
        return Answered(TEXT, [], None)


if __name__ == "__main__":
    attempt.Answer = AtOnce
    main()
