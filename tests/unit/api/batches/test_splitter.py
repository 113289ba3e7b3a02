"""Items are cut out of a body wherever its chunks begin and end, and nothing that is not JSON passes for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_relay.api.batches.splitter import (
    LINES_A_STEP,
    MOST_VALUES,
    TOKENS_A_STEP,
    Cutter,
    Limits,
    Lines,
    Members,
    Tokens,
)
from agent_relay.api.problems import Refused

LIMITS = Limits(item_bytes=100_000)

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
names = texts.filter(lambda name: name != "items")


def cut(cutter: Cutter, body: bytes, ends: Sequence[int]) -> list[Any]:
    """Feed a body in chunks that end at these places; returns the items."""
    places = sorted({0, len(body), *(end % (len(body) + 1) for end in ends)})
    items: list[bytes | None] = []
    for begin, end in pairwise(places):
        items += cutter.feed(body[begin:end])
    return [json.loads(item) for item in [*items, *cutter.end()] if item is not None]


@given(
    items=st.lists(values, max_size=5),
    before=st.dictionaries(names, values, max_size=2),
    after=st.dictionaries(names, values, max_size=2),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    ends=st.lists(st.integers(min_value=0), max_size=20),
)
def test_items_are_cut_out_of_an_object_whatever_stands_around_them(
    items: list[Any],
    before: dict[str, Any],
    after: dict[str, Any],
    indent: int | None,
    ascii_only: bool,
    ends: list[int],
) -> None:
    after = {name: value for name, value in after.items() if name not in before}
    body = json.dumps({**before, "items": items, **after}, indent=indent, ensure_ascii=ascii_only).encode()
    members = Members(LIMITS)

    assert cut(members, body, ends) == items
    assert members.head == {**before, "items": [], **after}


@given(st.lists(values, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n\t"]), st.lists(st.integers(0)))
def test_items_are_cut_out_of_lines(items: list[Any], between: bytes, ends: list[int]) -> None:
    body = between.join(json.dumps(item).encode() for item in items)

    assert cut(Lines(LIMITS), body, ends) == items


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "[]",
        "null",
        '"items"',
        "{",
        "}",
        '{"items": [1, 2]',
        '{"items": [1, 2}',
        '{"items": [1, 2]}}',
        '{"items": [1, 2]} x',
        '{"items": [1, 2]} {}',
        '{"items": [1, 2],}',
        '{"items": [1, 2] 3}',
        '{"items": [1, 2], "items": [3]}',
        '{"items": [1], "name": 1, "name": 2}',
        '{"items": [1], "name"}',
        '{"items": [1], {}}',
        '{, "items": []}',
        '{"items": [1], "name": {]}',
        '{"items": [1], "name": "}',
        'x{"items": []}',
        '["items": []]',
        '{"name": NaN, "items": []}',
    ],
)
@pytest.mark.parametrize("chunk", [1, 1000])
def test_what_is_not_one_json_object_is_refused(body: str, chunk: int) -> None:
    with pytest.raises(Refused) as refused:
        cut(Members(LIMITS), body.encode(), range(0, len(body), chunk))

    assert refused.value.code == "malformed_json"


@pytest.mark.parametrize("items", ["[,]", "[1,]", "[,1]", "[1,,2]", "[{]", "[[}]", "[1 2]", '["]'])
def test_an_array_with_a_hole_has_an_item_that_is_not_json(items: str) -> None:
    with pytest.raises((Refused, json.JSONDecodeError)):
        cut(Members(LIMITS), b'{"items": %s}' % items.encode(), [])


@pytest.mark.parametrize("cutter", [Lines, Members])
@pytest.mark.parametrize("ends", [[], range(0, 300_000, 1000)])
def test_an_item_has_an_end(cutter: type[Lines | Members], ends: Sequence[int]) -> None:
    items = [{"query": "short"}, {"query": "x" * LIMITS.item_bytes}]
    with pytest.raises(Refused) as refused:
        cut(cutter(LIMITS), body_of(cutter, items), ends)

    assert [(error.pointer, error.code) for error in refused.value.errors] == [("/items/1", "item_too_long")]


@pytest.mark.parametrize("cutter", [Lines, Members])
def test_an_item_holds_only_so_many_values_but_any_text(cutter: type[Lines | Members]) -> None:
    most, many = [0] * (MOST_VALUES - 1), [[0]] * MOST_VALUES
    text = {"query": '[{,"' * 5000}

    assert cut(cutter(LIMITS), body_of(cutter, [most, text, most]), []) == [most, text, most]
    with pytest.raises(Refused) as refused:
        cut(cutter(LIMITS), body_of(cutter, [most, many]), [])
    assert [(error.pointer, error.code) for error in refused.value.errors] == [("/items/1", "too_many_values")]


HOSTILE = {
    "strings": b'""' * 30_000,
    "brackets": b"]" * 60_000,
    "lines": b"\n" * 60_000,
}


@pytest.mark.parametrize("body", [b'{"name": [' + HOSTILE["strings"], b'{"items": [' + HOSTILE["strings"]])
def test_who_cuts_lets_others_go_on_however_much_there_is_to_look_at(body: bytes) -> None:
    assert len(list(Members(LIMITS).feed(body))) >= len(HOSTILE["strings"]) / 2 / TOKENS_A_STEP


@pytest.mark.parametrize(
    ("chunk", "times"),
    [
        (HOSTILE["lines"], len(HOSTILE["lines"]) / LINES_A_STEP),
        (b"," * MOST_VALUES + HOSTILE["strings"] + b"\n", 1),
        (b'"' + b"[" * MOST_VALUES + b'"' + HOSTILE["brackets"] + b"\n", len(HOSTILE["brackets"]) / TOKENS_A_STEP),
    ],
)
def test_who_cuts_lines_lets_others_go_on(chunk: bytes, times: float) -> None:
    steps = 0
    try:
        for cut in Lines(LIMITS).feed(chunk):
            steps += cut is None
    except Refused:
        steps += 1

    assert steps >= times


@pytest.mark.parametrize("text", [b'\\"', b"\\\\", b"x", b"\\u00e9"])
def test_no_byte_of_a_text_is_looked_at_twice(text: bytes) -> None:
    tokens = Tokens()
    tokens.add(b'"')
    for _ in range(20):
        tokens.add(text * 1000)
        assert tokens.next() is None
        assert tokens.at == len(tokens.buffer)
    tokens.add(b'",')

    assert tokens.next() == b'"'
    assert tokens.next() == b","


def body_of(cutter: type[Lines | Members], items: list[Any]) -> bytes:
    """Write items as they are cut."""
    return json.dumps({"items": items}).encode() if cutter is Members else b"\n".join(map(_dumps, items))


def _dumps(item: Any) -> bytes:
    return json.dumps(item).encode()
