"""The series of the plots: what a step says of its minutes, and what is not known."""

from __future__ import annotations

from typing import Any

import pytest

from agent_relay.api.operations.figures import GROWTH, MOST_AGENTS, OTHERS, WINDOWS, last_minute, percentile, series

UNTIL = 1_800_000_000 - 1_800_000_000 % 900
SHORT, DAY = WINDOWS["15m"], WINDOWS["1d"]


def figures(**given: Any) -> dict[str, Any]:
    """The figures of a minute in which nothing happened but this."""
    return {"ended": [], "picked_up": {}, "queues": [], "streams": 0, **given}


def ended(agent: str = "echo", status: str = "succeeded", runs: int = 6, tokens: float = 120) -> list[Any]:
    """Runs that ended."""
    failed = status == "failed"
    return [agent, status, "agent_error" if failed else "", runs, tokens, "id" if failed else None, "It failed."]


def test_each_minute_is_a_point_and_one_without_figures_is_not_known() -> None:
    minutes = [(UNTIL - 120, figures(ended=[ended()])), (UNTIL, figures())]

    plots = series(minutes, SHORT, UNTIL)

    assert plots["at"] == list(range(UNTIL - 14 * 60, UNTIL + 1, 60))
    assert plots["ended"]["succeeded"][-4:] == [None, 6, None, 0]
    assert plots["ended"]["failed"][-4:] == [None, 0, None, 0]
    assert plots["agents"]["echo"][-4:] == [None, 6, None, 0]
    assert plots["tokens"][-4:] == [None, 2, None, 0]


def test_a_longer_step_has_rates_of_all_its_minutes_and_the_most_of_what_waits() -> None:
    queue = [
        ["a", "interactive", "queued", 5, 3.5],
        ["b", "interactive", "queued", 2, 9],
        ["a", "batch", "running", 4, 1],
    ]
    minutes = [
        (UNTIL, figures(ended=[ended()], queues=queue, streams=4)),
        (UNTIL + 60, figures(ended=[ended(status="failed", runs=2)], queues=queue[:1], streams=9)),
    ]

    plots = series(minutes, DAY, UNTIL + 60)

    assert plots["ended"]["succeeded"][-1] == 3
    assert plots["ended"]["failed"][-1] == 1
    assert plots["queued"] == {"interactive": [None] * 95 + [7], "batch": [None] * 95 + [0]}
    assert plots["oldest"]["interactive"][-1] == 9
    assert plots["streams"][-1] == 9


def test_of_minutes_in_which_no_process_lived_only_the_queues_are_not_known() -> None:
    made_up: dict[str, Any] = {"ended": [ended()], "picked_up": {}}

    plots = series([(UNTIL, made_up)], SHORT, UNTIL)

    assert plots["ended"]["succeeded"][-1] == 6
    assert (plots["queued"]["batch"][-1], plots["oldest"]["batch"][-1], plots["streams"][-1]) == (None, None, None)


@pytest.mark.parametrize("more", [0, 1, 5])
def test_the_most_frequent_agents_have_lines_and_the_others_share_one(more: int) -> None:
    agents = [ended(f"agent-{number}", runs=100 - number) for number in range(MOST_AGENTS + more)]

    lines = series([(UNTIL, figures(ended=agents))], SHORT, UNTIL)["agents"]

    assert list(lines) == [f"agent-{number}" for number in range(MOST_AGENTS)] + ([OTHERS] if more else [])
    assert lines.get(OTHERS, [0])[-1] == sum(row[3] for row in agents[MOST_AGENTS:])


def test_failures_are_grouped_by_code_and_agent_and_show_the_last() -> None:
    first, last = ended("a", "failed", runs=1), ended("a", "failed", runs=4)
    last[5:] = ["last", "Later."]
    minutes = [
        (UNTIL - 60, figures(ended=[first, ended("b", "failed", runs=9)])),
        (UNTIL, figures(ended=[last, ended()])),
    ]

    assert series(minutes, SHORT, UNTIL)["failures"] == [
        {"code": "agent_error", "agent": "b", "runs": 9, "run_id": "id", "message": "It failed."},
        {"code": "agent_error", "agent": "a", "runs": 5, "run_id": "last", "message": "Later."},
    ]


@pytest.mark.parametrize(
    ("classes", "share", "seconds"),
    [
        ({}, 0.5, None),
        ({10: 1}, 0.99, GROWTH**10.5 / 1000),
        ({10: 50, 40: 50}, 0.5, GROWTH**10.5 / 1000),
        ({10: 50, 40: 51}, 0.5, GROWTH**40.5 / 1000),
        ({0: 94, 20: 5, 60: 1}, 0.95, GROWTH**20.5 / 1000),
        ({0: 98, 60: 2}, 0.99, GROWTH**60.5 / 1000),
    ],
)
def test_a_percentile_is_the_class_that_holds_it(classes: dict[int, int], share: float, seconds: float | None) -> None:
    assert percentile(classes, share) == (seconds and pytest.approx(seconds, abs=1e-4))


def test_the_last_minute_is_summed_up_for_the_figures_beside_the_plots() -> None:
    now = last_minute({"ended": [ended(), ended("b", "cancelled", 2)], "picked_up": {"batch": {"30": 4}}})

    assert now["ended"] == {"succeeded": 6, "cancelled": 2}
    assert now["agents"] == {"echo": {"succeeded": 6}, "b": {"cancelled": 2}}
    assert now["tokens"] == 4
    assert now["pick_up"]["interactive"]["p50"] is None
    assert now["pick_up"]["batch"]["p99"] == pytest.approx(GROWTH**30.5 / 1000, abs=1e-4)
