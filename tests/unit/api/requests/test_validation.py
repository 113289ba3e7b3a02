"""JSON is read as JSON means it, and a number that is refused in any case costs nothing."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_relay.api.problems import Refused
from agent_relay.api.requests.validation import MOST_BITS, read_json, unstorable

texts = st.text(max_size=40) | st.text(st.sampled_from('\\"/\n\t\b😀é\ud83d\ude00\0'), max_size=40)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**90), 10**307)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(value=values, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_what_is_read_is_what_was_written(value: Any, ascii_only: bool, indent: int | None) -> None:
    item = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode(errors="replace")

    assert read_json(item) == json.loads(item)


LARGEST = 2**MOST_BITS - 1


@pytest.mark.parametrize("number", [LARGEST, -LARGEST, 10**308, -(10**308), int("1" * 309)])
def test_a_whole_number_that_double_precision_reaches_is_read_to_the_last_digit(number: int) -> None:
    value = read_json(b'{"a": [%d]}' % number)

    assert value == {"a": [number]}
    assert unstorable(value) == []


@pytest.mark.parametrize("digits", [str(LARGEST + 1), str(-LARGEST - 1), "9" * 310, "1" * 4300, "-" + "1" * 4300])
def test_a_larger_one_is_out_of_range_wherever_it_stands(digits: str) -> None:
    value = read_json(f'{{"a": [1, {digits}], "b": {digits}}}'.encode())

    assert {(error.pointer, error.code) for error in unstorable(value)} == {
        ("/a/1", "number_out_of_range"),
        ("/b", "number_out_of_range"),
    }


def test_one_that_is_refused_in_any_case_is_not_worked_out() -> None:
    """It would take ten milliseconds a megabyte, in which nobody else is served."""
    assert read_json(b"[%s]" % b",".join([b"9" * 4000] * 261)) == [math.inf] * 261


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
        "[Infinity]",
        f"[{'1' * 4301}]",
        f"[-{'1' * 4301}]",
        f"[{'9' * (1 << 20)}]",
        f"[{'1' * 100},{'0' + '1' * 100}]",
        f"[{'0' * 5000}]",
        f"[+{'1' * 400}]",
        f"[{'1' * 400}_1]",
        "[%s.]" % ("1" * 100),
        "{%s: 1}" % ("1" * 100),
        "{%s: 1}" % ("1" * 400),
        f'["long text"{"1" * 100}]',
        "[" * 100_000,
        '""' * 50_000,
        "[" * 900 + '"long text"' + "]" * 900,
        "",
    ],
)
def test_what_is_malformed_is_refused(item: str) -> None:
    with pytest.raises(Refused) as refused:
        unstorable(read_json(item.encode()))
    assert refused.value.code == "malformed_json"


def test_what_is_not_utf_8_is_refused() -> None:
    with pytest.raises(Refused):
        read_json(b'["\xff"]')


def test_so_many_digits_are_malformed_however_many_python_reads() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        with pytest.raises(Refused):
            read_json(b"[%s]" % (b"1" * 4301))
    finally:
        sys.set_int_max_str_digits(before)
