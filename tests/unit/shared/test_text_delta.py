"""Growth: what a text grew by says the same as the text, in fewer characters, for clients in every language."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent_relay.shared.text_delta import Growth, growth

SCRIPTS = 'az09 "{}[],\\é\u0301שלם👩\u200d🚀𝄞\u2028中'
TEXTS = st.text(alphabet=SCRIPTS, max_size=60)
LONG = TEXTS.map(lambda piece: piece * 200)


@given(before=TEXTS | LONG, kept=st.integers(0, 12_000), tail=TEXTS)
def test_what_grew_out_of_a_text_is_rebuilt_from_it(before: str, kept: int, tail: str) -> None:
    after = before[:kept] + tail

    grown = growth(before, after)

    if grown is not None:
        assert grown.of(before) == after
        assert 0 <= grown.drop <= len(before)


@given(before=TEXTS, after=TEXTS)
def test_only_ascii_is_ever_dropped(before: str, after: str) -> None:
    grown = growth(before, after)

    if grown is not None:
        assert before[len(before) - grown.drop :].isascii()
        assert grown.of(before) == after


@given(before=TEXTS, after=TEXTS)
def test_growth_is_never_larger_than_the_text(before: str, after: str) -> None:
    grown = growth(before, after)

    if grown is not None:
        assert grown.drop + len(grown.append) < len(after)


@given(before=TEXTS.filter(bool), tail=TEXTS)
def test_what_was_only_added_to_is_always_said_as_growth(before: str, tail: str) -> None:
    assert growth(before, before + tail) == Growth(0, tail)


def test_a_closed_string_that_goes_on_costs_its_tail() -> None:
    assert growth('{"advice":"Good mor"}', '{"advice":"Good morning"}') == Growth(2, 'ning"}')


def test_a_dropped_emoji_means_the_whole_text() -> None:
    long = "a long beginning that stays as it is "

    assert growth(f"{long}👩", f"{long}🚀") is None
    assert growth(f"{long}e\u0301", f"{long}e") is None
    assert growth(f"{long}👩", f"{long}👩\u200d🚀") == Growth(0, "\u200d🚀")


def test_a_list_that_shrinks_is_said_as_growth_or_whole() -> None:
    before, after = '{"tags":["one","two","three"]}', '{"tags":["one"]}'

    assert growth(before, after) is None  # It would drop more than the whole text has.
    assert growth("x" * 100 + before, "x" * 100 + after) == Growth(16, "]}")
