"""Patches from one state to the next: all of them together make the last state, whatever the states are."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import jsonpatch  # pyright: ignore[reportMissingTypeStubs]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_relay.api.protocols.ag_ui.json_patch import patch

NAMES = st.sampled_from(["a", "b", "", "/", "~", "~1", "-", "0"])
ATOMS = st.sampled_from([None, True, False, 0, 1, 1.5, "", "1", "é"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


def same(one: object, other: object) -> bool:
    """Compare as JSON does, to which `true` is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@given(st.lists(VALUES, min_size=2, max_size=5))
def test_the_sum_of_the_patches_is_the_last_state(states: list[Any]) -> None:
    state = states[0]
    for before, after in pairwise(states):
        operations = patch(before, after)
        assert operations is not None
        state = jsonpatch.apply_patch(state, json.loads(json.dumps(operations)))
        assert same(state, after)
        assert same(before, after) == (operations == [])


@pytest.mark.parametrize("before", [[], [{"a": [1, 2, {"b": "c"}]}, "d"]])
def test_what_grows_is_added_and_nothing_else_is_told(before: list[Any]) -> None:
    assert patch({"x": before}, {"x": [*before, "e"]}) == [{"op": "add", "path": "/x/-", "value": "e"}]


@pytest.mark.parametrize("name", ["__proto__", "constructor"])
def test_what_clients_refuse_in_a_path_makes_no_patch(name: str) -> None:
    assert patch({}, {name: {"prototype": 1}}) == (
        None if name == "__proto__" else [{"op": "add", "path": "/constructor", "value": {"prototype": 1}}]
    )
    assert patch({name: {"prototype": 1}}, {name: {"prototype": 2}}) is None
