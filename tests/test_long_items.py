"""A long item is read in steps, and comes to the same as if it were read at once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.batches import long_items
from api.batches.intake import CHUNK_BYTES, gathered
from api.batches.long_items import PIECE, read_in_steps
from api.problems import Refused
from api.strict import read_json, unstorable

texts = st.text(max_size=40) | st.text(st.sampled_from('\\"/\n\t\b😀é\ud83d\ude00\0'), max_size=40)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**70, 10**90)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def read(item: bytes) -> tuple[Any, int]:
    """Read an item in steps; returns it and how many there were."""
    reading, steps = read_in_steps(item, "item"), 0
    while True:
        try:
            next(reading)
        except StopIteration as done:
            return done.value, steps
        steps += 1


@pytest.fixture
def in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take short items for long ones."""
    monkeypatch.setattr(long_items, "LONG_BYTES", 0)
    monkeypatch.setattr(long_items, "PIECE", 7)
    monkeypatch.setattr(long_items, "LEAST", 3)


@pytest.mark.usefixtures("in_small_steps")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_it_is_what_it_would_be_if_it_were_read_at_once(value: Any, ascii_only: bool, indent: int | None) -> None:
    item = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode(errors="replace")

    assert read(item)[0] == read_json(item)


@pytest.mark.usefixtures("in_small_steps")
@pytest.mark.parametrize(
    "item",
    [
        '{"a name": 1, "a name": 2}',
        '{"a name": 1, "a\\u0020name": 2}',
        '{"a text',
        '{"a text": "another',
        '{"a text": "another\\"}',
        '{"text": "\\q"}',
        '{"text": "\\u12"}',
        '{"text": "0123456\\u12G4"}',
        '{"text": "line\nbreak"}',
        '["text" "text"]',
        '["long text"1]',
        "[NaN]",
        "[%s]" % ("1" * 5000),
        f"[{'1' * 100},{'0' + '1' * 100}]",
        "[%s.]" % ("1" * 100),
        "{%s: 1}" % ("1" * 100),
        f'["long text"{"1" * 100}]',
        "[" * 100_000,
        '""' * 50_000,
        "[" * 900 + '"long text"' + "]" * 900,
        "",
    ],
)
def test_what_is_malformed_is_refused(item: str) -> None:
    with pytest.raises(Refused) as refused:
        read(item.encode())
    assert refused.value.code == "malformed_json"


@pytest.mark.usefixtures("in_small_steps")
def test_what_is_not_utf_8_is_refused() -> None:
    with pytest.raises(Refused):
        read(b'["\xff"]')


@pytest.mark.parametrize("unit", ["x", "\\n", '\\"', "\\\\", "\\u00e9", "\\ud83d\\ude00", "😀"])
def test_a_long_text_is_read_a_piece_at_a_time(unit: str) -> None:
    item = '{"query": "%s"}' % (unit * (20 * PIECE // len(unit)))
    value, steps = read(item.encode())

    assert value == json.loads(item)
    assert steps >= 20


def test_long_numbers_are_read_some_at_a_time() -> None:
    item = json.dumps([int("1" * 4000)] * 200)
    value, steps = read(item.encode())

    assert value == json.loads(item)
    assert [error.code for error in unstorable(value)] == ["number_out_of_range"] * 100
    assert steps >= len(item) / PIECE / 2


async def test_a_body_is_looked_at_a_chunk_at_a_time_however_it_comes() -> None:
    body = bytes(range(256)) * 5000

    async def coming(size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    for size in (100, CHUNK_BYTES - 1, len(body)):
        chunks = [chunk async for chunk in gathered(coming(size))]
        assert b"".join(chunks) == body
        assert {len(chunk) for chunk in chunks[:-1]} == {CHUNK_BYTES}
        assert len(chunks[-1]) < CHUNK_BYTES
