"""What cannot be said in JSON, and what is said in its place."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.usage import RequestUsage

from agent_relay.shared.runs.claim import Exchange
from agent_relay.worker.execution.history import history_of, transcript_of
from agent_relay.worker.storable import as_json, storable
from tests.support.odd_agents import OBJECTS, ExitsAsRead, Node, doubled, graph


class Colour(Enum):
    """An enumeration whose value is an object."""

    RED = object()


@dataclass
class Box:
    """A class that pydantic serializes where it can serialize what is inside."""

    inside: Any


class Form(BaseModel):
    """A model, of which the same holds."""

    inside: Any


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("\ud83d\ude00", "😀"),
        ("a\ud83d", "a\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("a\0b", "a\ufffdb"),
        ("naïve 😀", "naïve 😀"),
        (float("nan"), None),
        (float("-inf"), None),
        (2**70, 2**70),
        (OBJECTS["huge"](), "<int>"),
        (True, True),
        (b"\xff\0", "_wA="),
        ((1, (2,)), [1, [2]]),
        (OrderedDict[str, int](a=1), {"a": 1}),
        ({1: 1, None: 2, "\ud83d": 3}, {"1": 1, "None": 2, "\ufffd": 3}),
        (Decimal("1.50"), "1.50"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        (Box("\0"), {"inside": "\ufffd"}),
        (Box([object()]), {"inside": ["<object>"]}),
        (Form(inside={"deep": Box(object())}), {"inside": {"deep": {"inside": "<object>"}}}),
        (Form(inside=OBJECTS["endless"]()), {"inside": "<itertools.count>"}),
        (Colour.RED, f"<{__name__}.Colour>"),
        (ValueError("no"), "<ValueError>"),
        (MagicMock(), "<unittest.mock.MagicMock>"),
        (OBJECTS["contains_itself"](), ["<list>", "<list>"]),
        (ExitsAsRead(), f"<{ExitsAsRead.__module__}.ExitsAsRead>"),
        ([Form(inside=[1])] * 20, [{"inside": [1]}] * 20),
    ],
    ids=itertools.count(),
)
def test_what_json_cannot_say_is_mended_or_named(value: Any, said: Any) -> None:
    assert storable(value) == said
    assert json.loads(as_json(storable(value))) == said


class Tree(BaseModel):
    """A model that may hold itself on both sides."""

    left: Any
    right: Any


def _trees(depth: int) -> Tree:
    tree = Tree(left=1, right=2)
    for _ in range(depth):
        tree = Tree(left=tree, right=tree)
    return tree


@pytest.mark.parametrize("tangled", [graph(40), doubled(60), _trees(60), {"many": [graph(20), graph(20)]}])
def test_parts_that_refer_to_each_other_are_not_written_without_end(tangled: Any) -> None:
    """Each may be reached in more ways than there is time for."""
    assert len(as_json(storable(tangled))) < 5_000_000


def test_what_is_held_twice_is_written_twice() -> None:
    shared = [Node("shared"), {"a": [1]}]
    said: list[Any] = [{"name": "shared", "near": []}, {"a": [1]}]

    assert storable([shared] * 1000) == [said] * 1000


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.sampled_from([*OBJECTS]).map(lambda name: OBJECTS[name]()),
    lambda inside: (
        st.lists(inside)
        | st.dictionaries(st.text(st.characters(exclude_categories=())) | st.integers() | st.none(), inside)
        | inside.map(Box)
        | st.builds(Form, inside=inside)
    ),
    max_leaves=10,
)


@settings(deadline=None, database=None)
@given(ANYTHING)
def test_whatever_it_is_it_can_be_stored_and_read(value: Any) -> None:
    text = as_json(storable(value))

    assert "\\u0000" not in text
    json.loads(text.encode(), parse_constant=pytest.fail)


@settings(deadline=None, database=None)
@given(ANYTHING, st.text(st.characters(exclude_categories=())))
def test_a_transcript_can_be_read_again_whatever_is_in_it(value: Any, text: str) -> None:
    messages: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart([text, BinaryContent(data=b"\xff", media_type="image/png")])]),
        ModelRequest(parts=[ToolReturnPart(text, "3 rows", tool_call_id=text, metadata=value)]),
        ModelResponse(parts=[TextPart(text)], provider_details={text: value}, model_name=text),
    ]

    transcript = asyncio.run(transcript_of(messages, 1 << 20))

    assert transcript is not None
    assert "\0" not in transcript
    prompt, returned, response = contents(ModelMessagesTypeAdapter.validate_json(transcript))
    assert prompt[1].data == b"\xff"
    assert returned == "3 rows"
    assert response == storable(text)


def contents(messages: Sequence[Any]) -> list[Any]:
    """Read the content of the first part of each."""
    return [message.parts[0].content for message in messages]


async def test_a_transcript_is_lossless_where_json_can_say_it() -> None:
    messages: list[ModelMessage] = [
        ModelRequest(parts=[ToolReturnPart("t", {"a": [1, None]}, tool_call_id="1", metadata={"b": 2})]),
        ModelResponse(parts=[TextPart("naïve 😀 \0")]),
    ]

    assert ModelMessagesTypeAdapter.validate_json(await transcript_of(messages, 1 << 20) or "") == messages


async def test_a_count_that_is_no_number_loses_no_transcript() -> None:
    usage = RequestUsage(input_tokens=float("nan"))  # pyright: ignore[reportArgumentType]

    transcript = await transcript_of([ModelResponse(parts=[TextPart("Yes.")], usage=usage)], 1 << 20)

    assert transcript is not None
    assert contents(ModelMessagesTypeAdapter.validate_json(transcript)) == ["Yes."]


@pytest.mark.parametrize("transcript", [None, "", "[", '[{"kind": "of another version"}]', '[{"kind": "request"}]'])
async def test_where_a_transcript_cannot_be_read_the_query_and_the_answer_stand_for_it(transcript: str | None) -> None:
    good = await transcript_of([ModelResponse(parts=[TextPart("before")])], 1 << 20)

    history = await history_of([Exchange("?", None, good), Exchange("What?", "That.", transcript)])

    assert contents(history) == ["before", "What?", "That."]
