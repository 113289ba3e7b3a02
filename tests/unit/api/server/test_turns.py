"""A turn of the event loop takes in what a few connections received, in the order in which it came."""

from __future__ import annotations

import asyncio
from functools import partial

from agent_relay.api.server.turns import Turns


async def turn() -> None:
    """Let the loop make a turn."""
    await asyncio.sleep(0)


async def test_a_turn_has_so_many_places_and_the_next_one_as_many() -> None:
    turns = Turns(at_once=3)

    assert [turns.take() for _ in range(5)] == [True, True, True, False, False]
    await turn()
    assert [turns.take() for _ in range(5)] == [True, True, True, False, False]


async def test_what_waits_is_called_in_its_order_a_few_a_turn() -> None:
    turns, called = Turns(at_once=2), list[int]()
    assert [turns.take() for _ in range(3)] == [True, True, False]
    for number in range(5):
        turns.later(partial(called.append, number))

    seen: list[list[int]] = []
    for _ in range(4):
        await turn()
        seen.append(list(called))

    assert seen == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


async def test_nobody_overtakes_what_waits() -> None:
    turns, called = Turns(at_once=1), list[str]()
    assert turns.take()
    turns.later(partial(called.append, "first"))
    turns.later(partial(called.append, "second"))

    await turn()

    assert called == ["first"]
    assert not turns.take()
    await turn()
    await turn()
    assert called == ["first", "second"]
    assert turns.take()
