"""The service as its users have it: real API and worker processes, on a database and a Redis of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from agent_relay.embedded.postgres import AGENTS, API, WORKER
from agent_relay.shared.key_format import hash_key
from tests.support.forking import ROOT, Forked, may_fork, origin_of

KEYS = {"acme": "key-of-acme", "other": "key-of-other"}
OPERATOR_KEY = "key-of-an-operator"
START_SECONDS = 60
STOP_SECONDS = 20

GRANTED: set[str] = set()
"""URLs of databases in which API, worker and agents have roles of their own, as in production."""

TEST_AGENTS = {
    "bank_support": "agent_relay.worker.agents.bank_support:served",
    "echo": "tests.support.agents:echo",
    "slow": "tests.support.agents:slow",
    "patient": "tests.support.agents:patient",
    "unicode": "tests.support.agents:unicode",
    "second_thoughts": "tests.support.agents:second_thoughts",
    "recalls": "tests.support.agents:recalls",
    "big": "tests.support.agents:big",
    "nul": "tests.support.agents:nul",
    "breaks": "tests.support.agents:breaks",
    "form": "tests.support.agents:form",
    "unicode_form": "tests.support.agents:unicode_form",
    "never_valid": "tests.support.agents:never_valid",
    "tool_fails": "tests.support.agents:tool_fails",
    "limited": "tests.support.agents:limited",
    "looks": "tests.support.agents:looks",
    "breaks_database": "tests.support.agents:breaks_database",
    "poison": "tests.support.agents:poison",
}


@dataclass
class Running:
    """One process of the service."""

    name: str
    process: subprocess.Popen[bytes] | Forked
    log: Path
    url: str = ""

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop it in its tracks."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def terminate(self, seconds: float = STOP_SECONDS) -> int:
        """Ask it to stop, and wait until it has; returns its exit status."""
        self.process.terminate()
        return self.process.wait(seconds)

    def last_words(self) -> str:
        """What it wrote last."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def await_line(self, pattern: str) -> re.Match[str]:
        """Wait until it has written a line of that pattern."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if match := re.search(pattern, self.log.read_text(errors="replace")):
                return match
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"{self.name} never wrote {pattern!r}:\n{self.last_words()}")


@dataclass
class Service:
    """A set of processes that share a database and a Redis."""

    database_url: str
    redis_url: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])
    processes: list[Running] = field(default_factory=list[Running])
    forks: bool = True
    """Whether processes may be forked from others that have imported all, see `forking.py`."""

    def api(self, **environment: str) -> Running:
        """Start an API process, and wait until it takes requests."""
        running = self.begin("api", **{"PORT": "0", **environment})
        running.url = running.await_line(r"Uvicorn running on (http://\S+)")[1]
        deadline = time.monotonic() + START_SECONDS
        while httpx.get(f"{running.url}/health/live").status_code != 200:
            assert time.monotonic() < deadline, running.last_words()
        return running

    def worker(self, *arguments: str, **environment: str) -> Running:
        """Start a worker process, and wait until it takes runs."""
        running = self.begin("worker", *arguments, **environment)
        running.await_line(r"worker\.ready")
        return running

    def stop(self) -> None:
        """End whatever still runs."""
        for running in self.processes:
            if running.process.poll() is None:
                running.thaw()
                running.process.terminate()
        for running in self.processes:
            try:
                running.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                running.kill()

    def begin(self, name: str, *arguments: str, **environment: str) -> Running:
        """Start a process, of ours where the name is no module's, and do not wait for it."""
        module = name if "." in name else f"agent_relay.{name}"
        log = self.folder / f"{name}-{len(self.processes)}.log"
        environment = self.surroundings() | self.roles_of(name) | environment
        with log.open("wb") as output:
            if self.forks and may_fork(module, environment):
                process = origin_of(module).fork(arguments, environment, output.fileno())
            else:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
        running = Running(name, process, log)
        self.processes.append(running)
        return running

    def roles_of(self, name: str) -> dict[str, str]:
        """Where to a process connects, in its own role if the database has these."""
        if self.database_url not in GRANTED:
            return {}
        url = {role: self.database_url.replace("//postgres@", f"//{role}@") for role in (API, WORKER, AGENTS)}
        of_workers = {"DATABASE_URL": url[WORKER], "AGENT_DATABASE_URL": url[AGENTS]}
        return of_workers if name == "worker" else {"DATABASE_URL": url[API]}

    def surroundings(self) -> dict[str, str]:
        """The environment of its processes."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return kept | {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "API_KEYS": ",".join(f"{tenant}:{hash_key(key.encode())}" for tenant, key in KEYS.items()),
            "OPERATOR_KEYS": f"oscar:{hash_key(OPERATOR_KEY.encode())}",
            "AGENTS": ",".join(f"{name}={path}" for name, path in TEST_AGENTS.items()),
            "DRAIN_SECONDS": "1",
            "SCRIPTED_TOKENS_PER_SECOND": "400",
            "PYTHONPATH": str(ROOT / "src"),
            **self.environment,
        }


@contextmanager
def serving(
    database_url: str, redis_url: str, folder: Path, environment: dict[str, str] | None = None
) -> Generator[Service]:
    """Start processes at will, and have none left at the end."""
    service = Service(database_url, redis_url, folder, environment or {})
    try:
        yield service
    finally:
        service.stop()
