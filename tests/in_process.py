"""Have an agent answer in the process of a test, from the loading of `AGENTS` to the whole answer."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from pydantic_ai import CancellationToken, ModelMessage

from shared.settings import Settings
from worker.answer import Answer, Answered
from worker.budget import Budget
from worker.catalog import Offer, load

_MODULE = "made_for_a_test"


class Heard:
    """What was told of an answer."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.answered: Answered | None = None

    def tell(self, event: dict[str, Any]) -> None:
        """Hear of an event."""
        self.events.append(event)

    def show(self, text: str) -> None:
        """Hear a text."""
        self.texts.append(text)

    @property
    def messages(self) -> Sequence[ModelMessage]:
        """What the run adds to its thread."""
        assert self.answered is not None
        return self.answered.messages


def offer_of(served: Any, **settings: Any) -> Offer:
    """Load an agent as a worker does at its start."""
    module = ModuleType(_MODULE)
    vars(module)["it"] = served
    sys.modules[_MODULE] = module
    configured: dict[str, Any] = {"database_url": "postgresql://no/where", "redis_url": "redis://nowhere", **settings}
    (offer,) = load(Settings(agents={"it": f"{_MODULE}:it"}, **configured)).values()
    return offer


async def ask(
    served: Any,
    query: str = "hello",
    history: Sequence[ModelMessage] = (),
    *,
    deps: Any = None,
    timeout_seconds: float = 5,
    tries: int = 1,
    **settings: Any,
) -> Heard:
    """Have an agent answer; whatever it raises is raised."""
    heard = Heard()
    answer = Answer(
        offer_of(served, **settings),
        heard,
        CancellationToken(),
        budget=Budget(1 << 20, 1 << 20),
        partial_interval_seconds=0,
        tool_event_bytes=1000,
        model_timeout_seconds=timeout_seconds,
        model_tries=tries,
        seconds_left=math.inf,
    )
    heard.answered = await answer.write(query, history, deps)
    return heard
