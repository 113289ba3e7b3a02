"""SIGTERM and SIGINT before a process has begun its work: there is nothing to finish, so it ends at once.

This module imports next to nothing: imports take seconds, and the signal may come meanwhile.
"""

import os
import signal
from types import FrameType

TOLD = (signal.SIGTERM, signal.SIGINT)


def exit_when_told(status: int = 0) -> None:
    """On SIGTERM or SIGINT, end the process with this status and no output; until other handlers are set."""

    def end(_number: int, _frame: FrameType | None) -> None:
        os._exit(status)  # No `SystemExit`, which a module that is being imported could catch.

    for number in TOLD:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
