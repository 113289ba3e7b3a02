"""Reasoning as it is shown: parts numbered over the run, cut where they are long, and never silent."""

from __future__ import annotations

import pytest
from pydantic_ai.messages import (
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
)

from agent_relay.worker.execution.reasoning import MOST_PARTS, Reasoning


class Shown:
    """What was shown, in order."""

    def __init__(self, longest_bytes: int = 1000, kept: int = 0) -> None:
        self.all: list[tuple[int, str]] = []
        self.reasoning = Reasoning(lambda part, text: self.all.append((part, text)), longest_bytes, kept)

    def begin(self, index: int, text: str) -> None:
        """Begin a part at that place of the response."""
        self.reasoning.hear(PartStartEvent(index=index, part=ThinkingPart(text)))

    def grow(self, index: int, text: str | None, signature: str | None = None) -> None:
        """Have it grow."""
        self.reasoning.hear(
            PartDeltaEvent(index=index, delta=ThinkingPartDelta(content_delta=text, signature_delta=signature))
        )

    @property
    def newest(self) -> dict[int, str]:
        """Each part as it was shown last."""
        return dict(self.all)


def test_parts_are_numbered_over_all_responses_and_on_from_what_was_kept() -> None:
    shown = Shown(kept=2)
    shown.reasoning.begin_response()
    shown.begin(0, "a")
    shown.begin(1, "b")
    shown.grow(0, "A")
    shown.reasoning.begin_response()
    shown.begin(0, "c")

    assert shown.newest == {3: "aA", 4: "b", 5: "c"}


def test_a_part_that_begins_anew_at_its_place_takes_the_place_of_the_one_before() -> None:
    shown = Shown()
    shown.begin(0, "wrong")
    shown.begin(0, "right")
    shown.grow(0, "!")

    assert shown.newest == {1: "right!"}


def test_a_model_whose_thoughts_are_secret_is_seen_to_think() -> None:
    shown = Shown()
    shown.begin(0, "")
    shown.grow(0, None, signature="secret")

    assert shown.all == [(1, "")]


def test_what_is_no_reasoning_is_not_shown() -> None:
    shown = Shown()
    shown.reasoning.hear(PartStartEvent(index=0, part=TextPart("Hello")))
    shown.reasoning.hear(PartDeltaEvent(index=0, delta=TextPartDelta(content_delta=" world")))
    shown.reasoning.hear(PartEndEvent(index=0, part=TextPart("Hello world")))
    shown.grow(7, "of no part")

    assert shown.all == []


@pytest.mark.parametrize("longest", [0, 3, 4, 5])
def test_what_is_too_long_is_cut_and_goes_on_growing_by_its_length(longest: int) -> None:
    shown = Shown(longest)
    shown.begin(0, "aé")
    shown.grow(0, "é")
    assert shown.newest[1] == {0: "… (5 bytes)", 3: "aé… (5 bytes)", 4: "aé… (5 bytes)", 5: "aéé"}[longest]
    shown.grow(0, "x" * 95)
    shown.begin(1, "later")

    assert shown.newest == {1: {0: "", 3: "aé", 4: "aé", 5: "aéé"}[longest] + "… (100 bytes)", 2: "… (5 bytes)"}


def test_what_no_text_may_hold_is_mended() -> None:
    shown = Shown()
    shown.begin(0, "\ud800\0")
    shown.grow(0, "\ud83d\ude00")

    assert shown.newest == {1: "\ufffd\ufffd\U0001f600"}


def test_parts_without_end_are_not_shown() -> None:
    shown = Shown()
    for index in range(MOST_PARTS + 2):
        shown.begin(index, "a")

    assert list(shown.newest) == list(range(1, MOST_PARTS + 1))
