"""Failpoints: a process dies, freezes or logs the time between two steps, where no signal would hit.

Tests and benchmarks set them with `FAILPOINTS`. Without it, each costs a look-up in an empty dictionary.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from agent_relay.shared.plain_numbers import whole_number

log = logging.getLogger(__name__)


class Failpoint(StrEnum):
    """The windows, each named after the step before it."""

    RUN_ACCEPTED = "run_accepted"
    """Its row is committed; it is not enqueued, and the caller has no reply."""
    RUN_RUNG = "run_rung"
    """It is enqueued; the caller has no reply."""
    CANCEL_STORED = "cancel_stored"
    """The requested cancel, or the end by it, is committed; no process was notified."""
    RUN_POPPED = "run_popped"
    """The entry is gone from its queue; the run is not claimed."""
    RUN_CLAIMED = "run_claimed"
    """The claim is committed; no event is published."""
    LOG_APPENDED = "log_appended"
    """Redis has appended and announced; the reply was not seen."""
    STEP_FINISHED = "step_finished"
    """A response or a tool's result is there; it is not stored."""
    STEP_STORED = "step_stored"
    """A step is committed; the next one has not begun."""
    MESSAGE_STORED = "message_stored"
    """A message into a run is committed; its worker was not notified, and the caller has no reply."""
    MESSAGE_GIVEN = "message_given"
    """An agent has got a message into its run; it is not published, and no step with it is stored."""
    RUN_FLUSHED = "run_flushed"
    """The answer stands in the log; its end is not stored."""
    RUN_STORED = "run_stored"
    """The end is committed; it is not published, and the thread's next run is not enqueued."""
    END_TOLD = "end_told"
    """The end is in the log; the row is not marked, and the thread's next run is not enqueued."""
    RUN_WAITING = "run_waiting"
    """The wait of a run is committed; it is not published."""
    ANSWER_STORED = "answer_stored"
    """An answer is committed; it is not published, and the run is not enqueued."""
    RUN_GIVEN_BACK = "run_given_back"
    """The run is queued again; it is not enqueued."""
    RUNS_STARTED = "runs_started"
    """Runs whose start has come are committed as claimable; they are not enqueued."""
    TICK_MADE = "tick_made"
    """The run of a schedule's tick is written; nothing is committed."""
    TICK_STORED = "tick_stored"
    """A tick and its run are committed; the run is not enqueued."""
    RUNS_TAKEN_BACK = "runs_taken_back"
    """Runs of dead workers are queued again, or have ended; none is enqueued or published."""


class Action(StrEnum):
    """The action of a failpoint."""

    KILL = "kill"
    FREEZE = "freeze"
    STAMP = "stamp"
    """Each time, a line in the log has the time, by a clock that all processes of a machine share."""


_SIGNALS = {Action.KILL: signal.SIGKILL, Action.FREEZE: signal.SIGSTOP}


@dataclass(slots=True)
class Trap:
    """The action of a failpoint; once, except `STAMP`."""

    name: Failpoint
    action: Action
    passes: int
    """How often the process comes by before."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name=action` or `name=action@passes`."""
        name, _, what = text.partition("=")
        action, _, passes = what.partition("@")
        return cls(Failpoint(name), Action(action), whole_number(passes or "0"))


_traps: dict[Failpoint, Trap] = {}


def arm(traps: Iterable[Trap]) -> None:
    """Set traps in this process."""
    _traps.update({trap.name: trap for trap in traps})


def reached(name: Failpoint) -> None:
    """Come by a failpoint."""
    if _traps and (trap := _traps.get(name)):
        _spring(trap)


def _spring(trap: Trap) -> None:
    if trap.passes:
        trap.passes -= 1
        return
    if trap.action is Action.STAMP:
        log.info("failpoint.stamped name=%s nanoseconds=%d", trap.name, time.monotonic_ns())
        return
    del _traps[trap.name]
    log.critical("failpoint.reached name=%s action=%s pid=%d", trap.name, trap.action, os.getpid())
    os.kill(os.getpid(), _SIGNALS[trap.action])
