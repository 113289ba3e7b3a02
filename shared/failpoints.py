"""Places where a process dies, freezes or notes the time if it is told to: between two steps, where no signal hits.

Tests and benchmarks tell it through `FAILPOINTS`. Off, as in every other life, each costs a look at an empty
dictionary.
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
    """The windows, each named after what has just been done."""

    RUN_ACCEPTED = "run_accepted"
    """Its row is committed; no worker was rung, and the caller knows nothing."""
    RUN_RUNG = "run_rung"
    """A worker was rung; the caller knows nothing."""
    CANCEL_STORED = "cancel_stored"
    """The wish to cancel is committed, or the end that it was; nobody was told."""
    RUN_POPPED = "run_popped"
    """The ring is gone from its lane; the run is not claimed."""
    RUN_CLAIMED = "run_claimed"
    """The claim is committed; nothing was told."""
    LOG_APPENDED = "log_appended"
    """Redis has appended and announced; the reply was not seen."""
    STEP_FINISHED = "step_finished"
    """A response or a tool's result is there; it is not stored."""
    STEP_STORED = "step_stored"
    """A step is committed; the next one has not begun."""
    MESSAGE_STORED = "message_stored"
    """A message into a run is committed; its worker was not told, and the caller knows nothing."""
    MESSAGE_GIVEN = "message_given"
    """An agent has got a message into its run; readers were not told, and no step with it is stored."""
    RUN_FLUSHED = "run_flushed"
    """The answer stands in the log; its end is not stored."""
    RUN_STORED = "run_stored"
    """The end is committed; it was not told, and the thread's next run was not rung."""
    END_TOLD = "end_told"
    """The end stands in the log; the row does not know, and the thread's next run was not rung."""
    RUN_WAITING = "run_waiting"
    """The wait of a run is committed; it is not published, and no event says so."""
    ANSWER_STORED = "answer_stored"
    """An answer is committed; it is not published, and the run is not enqueued."""
    RUN_GIVEN_BACK = "run_given_back"
    """The run waits again; nobody was rung."""
    RUNS_STARTED = "runs_started"
    """Runs whose start has come are committed as claimable; they are not enqueued."""
    TICK_MADE = "tick_made"
    """The run of a schedule's tick is written; nothing is committed."""
    TICK_STORED = "tick_stored"
    """A tick and its run are committed; the run is not enqueued."""
    RUNS_TAKEN_BACK = "runs_taken_back"
    """Runs of the dead wait again, or have ended; nobody was rung or told."""


class Action(StrEnum):
    """What happens there."""

    KILL = "kill"
    FREEZE = "freeze"
    STAMP = "stamp"
    """Each time, a line in the log says when it was, by a clock that all processes of a machine share."""


_SIGNALS = {Action.KILL: signal.SIGKILL, Action.FREEZE: signal.SIGSTOP}


@dataclass(slots=True)
class Trap:
    """What happens at a failpoint; once, but for a stamp."""

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
