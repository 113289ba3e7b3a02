"""A value is counted before it is written, and a large one is written part by part as it would be at once."""

from __future__ import annotations

import itertools
import json
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Never

import pytest
from pydantic import BaseModel, Field, field_serializer, model_serializer
from pydantic_ai.messages import tool_return_ta

from agent_relay.worker.extent import LARGE, Endless, finite, written
from tests.support.odd_agents import Boxed, Opaque, Slotted, doubled


class Summed(BaseModel):
    """Writes something else than it holds."""

    rows: Any

    @model_serializer
    def total(self) -> int:
        """Say how many there are."""
        return len(self.rows)


class Partly(BaseModel):
    """Writes something else than it holds in one field, and nothing in another."""

    rows: Any
    hidden: Any = Field(exclude=True)

    @field_serializer("rows")
    def total(self, rows: list[Any]) -> int:
        """Say how many there are."""
        return len(rows)


@dataclass
class Single:
    """An object of which there is one."""

    inside: Any

    def __copy__(self) -> Never:
        raise TypeError("there is one")


ROWS = [{"number": number, "names": [str(number)] * 3} for number in range(LARGE // 2)]


@pytest.mark.parametrize(
    "value",
    [
        doubled(30),
        {"a": {"b": doubled(30)}},
        (doubled(30),),
        Boxed(doubled(30)),
        itertools.count(),
        [itertools.count()],
    ],
    ids=["lists", "dicts", "tuple", "object", "endless", "endless inside"],
)
async def test_what_is_written_as_more_values_than_it_may_be_is_refused(value: Any) -> None:
    with pytest.raises(Endless):
        await finite(value, 10_000)


async def test_the_values_of_shared_parts_count_each_time() -> None:
    shared = [1, 2, 3]

    smallest = len("[[1,1,1],[1,1,1]]") - 1
    assert (await finite([shared, shared], smallest))[0] == [shared, shared]
    with pytest.raises(Endless):
        await finite([shared, shared], smallest - 1)


@pytest.mark.parametrize("text", ["[]", "[1,2]", '{"":1}', '{"":{"":[]}}', '[{"":0},{"":0}]', '[1,"",[[],{}]]'])
async def test_a_size_is_never_more_than_what_is_written(text: str) -> None:
    value = json.loads(text)

    _, sizes = await finite(value, 1000)

    assert sizes[id(value)] <= len(tool_return_ta.dump_json(value))


async def test_what_functions_write_in_the_place_of_an_object_is_theirs() -> None:
    assert (await finite(Summed(rows=[[1] * 100] * 1000), 500))[0].rows
    assert (await finite(Partly(rows=[[1] * 100] * 1000, hidden=itertools.count()), 500))[0].rows


async def test_an_object_that_is_copied_stays_what_it_was() -> None:
    box = Boxed(iter([1, 2]))

    copied, _ = await finite([box, box, "x"], 100)

    assert copied == [Boxed([1, 2]), Boxed([1, 2]), "x"]
    assert copied[0] is copied[1]
    assert box.inside is not copied[0].inside


async def test_what_does_not_let_itself_be_copied_is_written_all_the_same() -> None:
    (copied,), _ = await finite([Single(iter([1, 2]))], 100)

    assert copied == {"inside": [1, 2]}


async def test_iterators_are_read_in_a_thread() -> None:
    def where() -> Any:
        yield threading.current_thread()

    (read,), _ = await finite([where()], 100)

    assert read[0] is not threading.current_thread()


async def test_what_an_iterator_raises_is_raised() -> None:
    def broken() -> Any:
        yield 1
        raise LookupError("of the generator")

    with pytest.raises(LookupError, match="of the generator"):
        await finite(Boxed([broken()]), 100)


async def test_what_contains_itself_is_left_to_pydantic() -> None:
    it: list[Any] = [1]
    it.append(it)

    assert (await finite(it, 100))[0] is it


async def test_iterators_in_lists_and_dicts_are_read_once_and_what_is_shared_is_read_once() -> None:
    numbers = iter([1, 2])

    assert (await finite({"a": [numbers], "b": numbers}, 100))[0] == {"a": [[1, 2]], "b": [1, 2]}


@pytest.mark.parametrize(
    "value",
    [
        list(range(3 * LARGE)),
        ROWS,
        {"rows": ROWS, "a": 1, "more": {"rows": tuple(ROWS), "b": None}, "é\n": []},
        {f"key {number}": number for number in range(3 * LARGE)},
        {1: ROWS, 2.5: 1, None: ROWS},
        [1, ROWS, 2, ROWS, ROWS, [], {}],
        [Boxed(ROWS), Boxed(1)],
        Boxed(ROWS),
        Boxed(Slotted(ROWS)),
        Opaque(inside=ROWS),
        set(range(3 * LARGE)),
        deque(ROWS),
    ],
    ids=[
        "numbers",
        "rows",
        "nested",
        "keys",
        "odd keys",
        "mixed",
        "objects",
        "object",
        "slots",
        "model",
        "set",
        "deque",
    ],
)
async def test_a_large_value_is_written_as_it_would_be_at_once(value: Any) -> None:
    value, sizes = await finite(value, 10_000_000)
    assert sizes[id(value)] > LARGE

    text = await written(value, sizes, tool_return_ta.dump_json, 100_000_000)

    assert text == tool_return_ta.dump_json(value)


async def test_what_is_too_long_is_not_written_to_its_end() -> None:
    value, sizes = await finite(list(range(100 * LARGE)), 10_000_000)

    assert 1000 < len(await written(value, sizes, tool_return_ta.dump_json, 1000)) < 20 * LARGE
