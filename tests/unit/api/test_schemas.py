"""What a query may say of its start."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from agent_relay.api.batches.schemas import BatchHead
from agent_relay.api.schemas import NewQuery
from agent_relay.shared.clock import now

ASKED: dict[str, Any] = {"agent_type": "echo", "query": "?"}
IN_THREAD: dict[str, Any] = {"thread_id": "0198c5a4-7c9e-7000-8000-000000000000", "query": "?"}


def _in(**away: float) -> str:
    return (now() + timedelta(**away)).isoformat()


@pytest.mark.parametrize(
    "start",
    [
        {"start_after_s": 0},
        {"start_after_s": 0.5},
        {"start_after_s": 7_776_000},
        {"start_after_s": None, "start_at": None},
        {"start_at": _in(days=89)},
        {"start_at": "1999-01-01T00:00:00Z"},
        {"start_at": "2026-01-01T00:00:00+05:30"},
    ],
)
def test_a_start_is_a_time_or_a_number_of_seconds(start: dict[str, Any]) -> None:
    query, head = NewQuery.model_validate(ASKED | start), BatchHead.model_validate({"agent_type": "echo"} | start)

    assert query.start_after_s == head.start_after_s == start.get("start_after_s")
    assert query.start_at == head.start_at


@pytest.mark.parametrize(
    "start",
    [
        {"start_after_s": -1},
        {"start_after_s": 7_776_001},
        {"start_after_s": "60"},
        {"start_after_s": True},
        {"start_after_s": float("nan")},
        {"start_after_s": float("inf")},
        {"start_at": _in(days=91)},
        {"start_at": "2026-01-01"},
        {"start_at": "2026-01-01T00:00:00"},
        {"start_at": "2026-02-30T00:00:00Z"},
        {"start_at": 1_800_000_000},
        {"start_at": "tomorrow"},
        {"start_at": "2026-01-01T00:00:00Z", "start_after_s": 0},
    ],
)
def test_anything_else_is_refused(start: dict[str, Any]) -> None:
    for kind, asked in ((NewQuery, ASKED), (BatchHead, {"agent_type": "echo"})):
        with pytest.raises(ValidationError):
            kind.model_validate(asked | start)


@pytest.mark.parametrize(
    "more",
    [
        {"multitask_strategy": "interrupt"},
        {"multitask_strategy": "rollback"},
        {"multitask_strategy": "reject"},
        {"replace_from": "0198c5a4-7c9e-7000-8000-000000000001"},
    ],
)
def test_a_run_that_starts_later_goes_behind_what_its_thread_holds_then(more: dict[str, Any]) -> None:
    assert NewQuery.model_validate(IN_THREAD | {"start_after_s": 60, "multitask_strategy": "enqueue"})
    assert NewQuery.model_validate(IN_THREAD | more | {"start_after_s": 0})

    with pytest.raises(ValidationError, match="leave out replace_from"):
        NewQuery.model_validate(IN_THREAD | more | {"start_after_s": 60})
