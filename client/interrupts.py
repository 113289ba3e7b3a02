"""Ctrl-C while the client is still being imported, which takes a moment: there is nothing to end in order."""

import os
import signal

INTERRUPTED = 130


def _leave(*_: object) -> None:
    os._exit(INTERRUPTED)


def leave_at_once() -> None:
    """End the process on Ctrl-C without a word, from now on."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_again() -> None:
    """Have Ctrl-C raise `KeyboardInterrupt`, as it usually does."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
