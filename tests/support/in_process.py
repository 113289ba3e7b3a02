"""Have an agent answer in the process of a test, from the loading of `AGENTS` to the whole answer."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from pydantic_ai import CancellationToken, ModelMessage

from agent_relay.shared.runs.wait import DeferredCall
from agent_relay.shared.settings import Settings
from agent_relay.worker.catalog import RegisteredAgent, load
from agent_relay.worker.execution.answer import Answer, Answered, Asked
from agent_relay.worker.execution.size_limits import Budget

_MODULE = "made_for_a_test"


class Heard:
    """What was told of an answer."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.answered: Answered | Asked | None = None
        self.answer: Answer | None = None

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

    @property
    def asked(self) -> Sequence[DeferredCall]:
        """What its tools ask for."""
        assert isinstance(self.answered, Asked)
        return self.answered.calls


def offer_of(served: Any, **settings: Any) -> RegisteredAgent:
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
    heard: Heard | None = None,
    **settings: Any,
) -> Heard:
    """Have an agent answer; whatever it raises is raised."""
    heard = heard or Heard()
    heard.answer = answer = Answer(
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
