"""A process that is told to stop before it has begun to work: there is nothing to end in order, so it ends at once.

This module imports next to nothing, because what a process imports takes seconds in which it can be told.
"""

import os
import signal
from types import FrameType

TOLD = (signal.SIGTERM, signal.SIGINT)


def exit_when_told(status: int = 0) -> None:
    """End the process with that status, without a word, when it is told to stop; until others handle its signals."""

    def end(_number: int, _frame: FrameType | None) -> None:
        os._exit(status)  # No `SystemExit`, which a module that is being imported could catch.

    for number in TOLD:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
