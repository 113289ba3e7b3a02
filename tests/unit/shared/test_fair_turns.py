"""Callers take turns for what there is too little of."""

from __future__ import annotations

import asyncio
from contextvars import copy_context

import pytest

from agent_relay.shared.fair_turns import CALLER, FairTurns


class _Callers:
    """Callers that wait for an item, and the order in which they had one."""

    def __init__(self) -> None:
        self.turns = FairTurns[str]()
        self.served: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, tenant: str, user: str, times: int = 1, seconds: float | None = None) -> None:
        """Begin to wait, so many times; return once they do."""

        async def one() -> None:
            CALLER.set((tenant, user))
            await self.turns.take(seconds)
            self.served.append(f"{tenant} {user}")

        self.tasks += [asyncio.create_task(one(), context=copy_context()) for _ in range(times)]
        await asyncio.sleep(0)

    async def serve(self, times: int) -> list[str]:
        """Give an item, so many times; returns who had them."""
        for _ in range(times):
            self.turns.give("it")
            await asyncio.sleep(0.001)
        served, self.served = self.served, []
        return served


async def test_a_tenant_that_comes_last_is_served_next_but_one() -> None:
    callers = _Callers()
    await callers.ask("loud", "a", 100)
    await callers.ask("other", "b")
    assert await callers.serve(3) == ["loud a", "other b", "loud a"]


async def test_the_users_of_a_tenant_take_turns_of_its_own() -> None:
    callers = _Callers()
    await callers.ask("loud", "a", 3)
    await callers.ask("loud", "b", 3)
    await callers.ask("other", "c", 3)
    assert await callers.serve(9) == [
        *("loud a", "other c", "loud b", "other c", "loud a", "other c"),
        *("loud b", "loud a", "loud b"),
    ]


async def test_a_newcomer_does_not_pass_those_who_wait() -> None:
    callers = _Callers()
    await callers.ask("loud", "a")
    callers.turns.give("it")
    newcomer = asyncio.create_task(callers.turns.take(None))
    await asyncio.sleep(0)
    assert not newcomer.done(), "the item was handed to the one that waited"
    assert callers.served == ["loud a"]
    callers.turns.give("it")
    assert await newcomer == "it"


async def test_who_gave_up_has_no_turn_and_keeps_no_item() -> None:
    callers = _Callers()
    await callers.ask("loud", "a", 3)
    for task in callers.tasks[:2]:
        task.cancel()
    await asyncio.sleep(0)
    callers.turns.give("it")
    callers.tasks[2].cancel()  # It was given one in the same moment.
    await asyncio.gather(*callers.tasks, return_exceptions=True)
    assert callers.served == []
    assert list(callers.turns.free) == ["it"]
    assert await callers.turns.take(None) == "it"


async def test_who_waits_too_long_is_told() -> None:
    turns = FairTurns[str]()
    with pytest.raises(TimeoutError):
        await turns.take(0.001)
    turns.give("it")
    assert await turns.take(0.001) == "it"
