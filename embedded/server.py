"""A private server and its verbs: start, stop, kill, freeze, and leave nothing behind.

A server has a short folder of its own under `/tmp` for its socket, which is what its clients know it by: the folder
stays the same over restarts and goes with `close`. With a home, data and log live there; without one, here.
"""

import os
import shutil
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from agent_relay.embedded.data_dir import DataDir
from agent_relay.embedded.environment import servers_environment
from agent_relay.embedded.process import Process, Steps, command_of, stop_stranger
from agent_relay.embedded.user import hand_over, servers_account

_START_SECONDS = 60
_LOG_LINES = 15
_TEMPORARY = Path("/tmp")  # noqa: S108  (made by mkdtemp; TMPDIR may be too long for a socket, or closed to the account)


class ServerStartError(Exception):
    """A server did not start; the message ends with the last lines of its log."""


class Server(ABC):
    """What PostgreSQL and Redis have in common. Use it as a context, or pair `start` with `close`."""

    name: ClassVar[str]
    steps: ClassVar[Steps]

    def __init__(self, home: DataDir | None = None) -> None:
        self._home = home
        self._process: Process | None = None
        self._frozen: list[int] = []
        if home:
            self._forget_earlier_run(home)
        self.folder = Path(tempfile.mkdtemp(prefix="agent-relay-", dir=_TEMPORARY))
        hand_over(self.folder)
        self.log = (home.path if home else self.folder) / f"{self.name}.log"
        self.log.write_bytes(b"")

    def __enter__(self) -> Self:
        """Start, and clean up where that fails."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and leave nothing behind but the home."""
        self.close()

    @property
    def process(self) -> Process:
        """The server's process, of the latest start."""
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process

    def start(self, abandoned: Callable[[], bool] = lambda: False) -> None:
        """Start, and return once it answers or the caller no longer wants it; raise `ServerStartError` with why."""
        if self._process and self._process.end is None:
            raise RuntimeError(f"{self.name} is running")
        self._prepare()
        deadline = time.monotonic() + _START_SECONDS
        self._launch()
        while not self._answers() and not abandoned():
            end = self.process.end
            if time.monotonic() > deadline:
                self.stop(kill=True)
                raise ServerStartError(
                    f"{self.name} did not answer within {_START_SECONDS} seconds.\n{self.last_words()}"
                )
            if end and not self._worth_another_try():
                raise ServerStartError(f"{self.name} ended with {end} as it started.\n{self.last_words()}")
            time.sleep(0.02)
            if end:
                self._launch()

    def stop(self, *, kill: bool = False) -> None:
        """Stop in order, or by SIGKILL as a crash would; the socket's folder and the data stay."""
        if self._process is None:
            return
        if kill:
            for pid in self._frozen:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._frozen = []
        else:
            self.resume()
        self._process.stop(() if kill else self.steps)

    def restart(self, *, kill: bool = False) -> None:
        """Stop and start again, on the same socket and the same data."""
        self.stop(kill=kill)
        self.start()

    def pause(self) -> None:
        """Freeze the server with SIGSTOP, as a machine that hangs: connections stay open and nothing answers."""
        self.process.send(signal.SIGSTOP)
        self._frozen = [self.process.pid]

    def resume(self) -> None:
        """Thaw a paused server."""
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []

    def close(self) -> None:
        """Stop and remove the socket's folder; without a home, that is all there ever was."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._home:
            self._record(self._home).unlink(missing_ok=True)

    def last_words(self) -> str:
        """Return the end of the log, as sentences to show."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([f"The last lines of {self.log}:", *(f"  {line}" for line in lines[-_LOG_LINES:])])

    @abstractmethod
    def _prepare(self) -> None:
        """Make ready what the command needs."""

    @abstractmethod
    def _command(self) -> list[str | Path]:
        """Return the command, which names the folder."""

    @abstractmethod
    def _answers(self) -> bool:
        """Tell whether the server can be used now."""

    def _worth_another_try(self) -> bool:
        """Tell whether a start that failed fails for a reason that passes."""
        return False

    def _launch(self) -> None:
        self._process = self._run(self._command())
        if self._home:
            self._record(self._home).write_text(f"{self._process.pid}\n{self.folder}\n")

    def _run(self, command: list[str | Path]) -> Process:
        """Run a command of the server's as its account, with its log and none of our environment."""
        with self.log.open("ab") as log:
            return Process(
                command,
                environment=servers_environment(),
                folder=self.folder,
                output=log.fileno(),
                account=servers_account(),
                leash=self.steps[0][0],
            )

    def _record(self, home: DataDir) -> Path:
        return home.path / f"{self.name}.running"

    def _forget_earlier_run(self, home: DataDir) -> None:
        """Stop what an earlier run that was killed left behind; its folder's name tells it from every other process."""
        record = self._record(home)
        if not record.exists():
            return
        pid, folder = record.read_text().splitlines() or ("0", "")
        if folder and folder in command_of(int(pid)):
            stop_stranger(int(pid), *self.steps[0])
        if Path(folder).parent == _TEMPORARY:
            shutil.rmtree(folder, ignore_errors=True)
        record.unlink()
