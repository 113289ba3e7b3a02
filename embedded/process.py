"""A process of ours: leashed to us, in a session of its own, and stopped within bounds."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from agent_relay.embedded.user import Account

_LEASH = Path(__file__).with_name("exec_shim.py")

Steps = Sequence[tuple[signal.Signals, float]]
"""Signals to send one after the other, each with the seconds that it is given to be obeyed."""


class Process:
    """A running command. Its session is its own, so that Ctrl-C in the terminal reaches only who started it."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        folder: Path,
        output: int | None = None,
        account: Account | None = None,
        leash: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Start the command; `leash` is the signal that it gets from Linux when we die first."""
        # Linux watches the thread that starts a process. One that may end before us must not take it along.
        watched = threading.current_thread() is threading.main_thread()
        uid, gid = (account.uid, account.gid) if account else (-1, -1)
        leashed = [sys.executable, "-I", "-S", _LEASH, os.getpid(), int(leash) if watched else 0, uid, gid, *command]
        self._popen = subprocess.Popen(  # noqa: S603  (our own commands)
            [str(part) for part in leashed],
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        self._swept = False

    @property
    def pid(self) -> int:
        """The process's id, which is its session's as well."""
        return self._popen.pid

    @property
    def end(self) -> str | None:
        """How it ended, as "SIGKILL" or "status 1"; None while it runs."""
        status = self._popen.poll()
        if status is None:
            return None
        if not self._swept:  # What it had started and left in its group ends with it.
            self._swept = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        return signal.Signals(-status).name if status < 0 else f"status {status}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal, to a process that may have ended."""
        self._popen.send_signal(number)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end; tell whether it came in time."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)
        return self.end is not None

    def stop(self, steps: Steps) -> None:
        """Ask by each signal in turn, and in the end do not ask."""
        for number, seconds in steps:
            self.send(number)
            if self.wait(seconds):
                return
        self.send(signal.SIGKILL)
        self.wait()


def stop_stranger(pid: int, number: signal.Signals, seconds: float) -> None:
    """Stop a process that is not our child: by the signal, and after the seconds by force."""
    for signal_number in (number, signal.SIGKILL):
        deadline = time.monotonic() + seconds
        with suppress(ProcessLookupError):
            os.kill(pid, signal_number)
        while command_of(pid) and time.monotonic() < deadline:
            time.sleep(0.02)


def command_of(pid: int) -> str:
    """Return the command line of any process, or nothing where there is none."""
    if Path("/proc/self/cmdline").exists():
        with suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return ""
    ps = ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(ps, capture_output=True, check=False, text=True).stdout.strip()  # noqa: S603  (fixed command)
