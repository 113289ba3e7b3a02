"""Become a command that does not outlive its parent, as another account where root started it.

Run as a file: `python -I -S exec_shim.py PARENT SIGNAL UID GID COMMAND…`. Linux sends SIGNAL to the command when the
thread that started it dies (0: never; other systems have no such thing), and a change of account would forget that, so
the account comes first (-1: stay who we are). A program of its own rather than a `preexec_fn`, which is not safe beside
threads; and its interpreter need not be within reach of the account, because it is root until the end.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Take the account, the leash and the shape of the command."""
    parent, leash, uid, gid = (int(argument) for argument in sys.argv[1:5])
    command = sys.argv[5:]
    try:
        if uid >= 0:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        if leash and sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, leash)
            if os.getppid() != parent:  # It died before it could be asked about.
                raise SystemExit(1)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and a command would inherit that.
        os.execv(command[0], command)  # noqa: S606  (becoming the command is the point)
    except OSError as error:
        raise SystemExit(f"cannot run {command[0]} as user {os.geteuid()}: {error}") from None


if __name__ == "__main__":
    main()
