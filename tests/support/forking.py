"""Processes of the service that start at once: they are forked from one that has imported what they import.

To start an API and a worker takes five seconds of a core, of which imports are the most, and nearly every test does. A
forked process is like another one: it has its own environment, arguments, output, signals and exit status, and runs the
same `__main__`. Only its command line, as `ps` shows it, and its memory are of the process that it was forked from.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
IMPORTED = {
    "agent_relay.api": ["agent_relay.api.__main__"],
    "agent_relay.worker": [
        "agent_relay.worker.__main__",
        "agent_relay.worker.app",
        "agent_relay.worker.process",
        "pydantic_ai.models.function",
        "pydantic_ai.models.test",
    ],
}
"""What each imports before its settings are read; agents are imported by those that serve them."""
OF_THE_INTERPRETER = ("PYTHON", "LC_", "LD_", "TZ", "MALLOC", "OPENSSL", "SSL")
"""Variables that are read when an interpreter or a library starts."""
_LONGEST = 1 << 20


class Forked:
    """A process, as much of `subprocess.Popen` as tests use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.ended = threading.Event()

    def poll(self) -> int | None:
        """Return the exit status, negative of a signal, or None where it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return the exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to stop."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class Origin:
    """The process from which those of one module are forked."""

    def __init__(self, module: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, module, str(theirs.fileno())],
                cwd=ROOT,
                env=_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._lock = threading.Lock()
        self._made: dict[int, Forked] = {}
        self._answer: Forked | None = None
        self._answered = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], output: int) -> Forked:
        """Have a process run the module; what it writes goes to the file `output`."""
        wish = json.dumps([list(arguments), dict(environment)]).encode()
        with self._lock:
            self._answered.clear()
            socket.send_fds(self._socket, [wish], [output])
            self._answered.wait()
            assert self._answer is not None, "what processes are forked from has died"
            made, self._answer = self._answer, None
            return made

    def _listen(self) -> None:
        while told := self._socket.recv(_LONGEST):
            pid, status = json.loads(told)
            if status is None:
                self._answer = self._made[pid] = Forked(pid)
                self._answered.set()
            else:
                made = self._made.pop(pid)
                made.returncode = os.waitstatus_to_exitcode(status)
                made.ended.set()
        self._answered.set()


@cache
def origin_of(module: str) -> Origin:
    """Start what processes of a module are forked from, once in this process."""
    return Origin(module)


def may_fork(module: str, environment: Mapping[str, str]) -> bool:
    """Tell whether a forked process is like one that is started with this environment."""
    return module in IMPORTED and _fixed(environment) == _fixed(_environment(os.environ))


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    kept = {name: given[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in given}
    return kept | {"PYTHONPATH": str(ROOT / "src")}


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(OF_THE_INTERPRETER)}


def _serve(module: str, end: socket.socket) -> None:
    """Import, and fork whenever told to, until the one who tells is gone."""
    for each in IMPORTED[module]:
        importlib.import_module(each)
    del sys.modules[f"{module}.__main__"]  # It is run.
    gc.collect()
    gc.freeze()
    died, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, _wake)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([end, died], [], [])
        if died in ready:
            os.read(died, 4096)
            _report(end)
        if end in ready:
            wish, files, _, _ = socket.recv_fds(end, _LONGEST, 1)
            if not wish:
                return
            arguments, environment = json.loads(wish)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                end.close()
                os.close(died)
                os.close(wakes)
                _run(module, arguments, environment, files[0])
            os.close(files[0])
            end.send(json.dumps([pid, None]).encode())


def _wake(*_: object) -> None:
    """Do nothing: the signal has written to the pipe."""


def _report(end: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        end.send(json.dumps([pid, status]).encode())


def _run(module: str, arguments: list[str], environment: dict[str, str], output: int) -> NoReturn:
    """Run the module as `python -m` does, from its environment to its exit status."""
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    status: Any = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as left:
        status = left.code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:  # noqa: BLE001  (as the interpreter does)
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)  # noqa: T201
        status = 1
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


if __name__ == "__main__":
    _serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
