"""A failpoint that is to be stamped logs the time, each time, and stops nothing."""

from __future__ import annotations

import logging
import time

import pytest

from agent_relay.shared import failpoints
from agent_relay.shared.failpoints import Action, Failpoint, Trap, arm, reached


def test_a_stamp_says_when_a_process_came_by_as_often_as_it_does(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failpoints, "_traps", {})
    caplog.set_level(logging.INFO)
    arm([Trap.parse("run_claimed=stamp@1"), Trap.parse("run_accepted=stamp")])

    began = time.monotonic_ns()
    for _ in range(3):
        reached(Failpoint.RUN_CLAIMED)
    reached(Failpoint.RUN_ACCEPTED)
    reached(Failpoint.RUN_STORED)
    ended = time.monotonic_ns()

    said = [line.removeprefix("failpoint.stamped name=").split(" nanoseconds=") for line in caplog.messages]
    assert [name for name, _ in said] == ["run_claimed", "run_claimed", "run_accepted"]
    stamps = [int(nanoseconds) for _, nanoseconds in said]
    assert [began, *stamps, ended] == sorted([began, *stamps, ended])
    assert Trap.parse("run_claimed=stamp").action is Action.STAMP
