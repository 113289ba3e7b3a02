"""The command-line client as people start it: a process, its environment, its files and what it says."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Self

from tests.support.client import Client
from tests.support.service import KEYS, ROOT

LOOK_SECONDS = 0.02
DEADLINE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    status: int | None
    answer: str
    """On standard output."""
    told: str
    """On standard error."""


@dataclass
class Started:
    """A command that runs."""

    process: asyncio.subprocess.Process

    async def ended(self, seconds: float = DEADLINE_SECONDS) -> Ended:
        """Wait for its end."""
        async with asyncio.timeout(seconds):
            answer, told = await self.process.communicate()
        assert KEYS["acme"] not in (answer + told).decode()
        return Ended(self.process.returncode, answer.decode(), told.decode())

    async def until(self, look: Callable[[], object]) -> None:
        """Wait until something is so, while it runs."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not look():
                assert self.process.returncode is None, (await self.ended()).told
                await asyncio.sleep(LOOK_SECONDS)

    async def interrupt(self) -> Ended:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return await self.ended()

    async def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        await self.ended()


@dataclass
class Terminal:
    """A terminal of a user."""

    url: str
    user_id: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])
    module: tuple[str, ...] = ("-m", "agent_relay.client")
    started: list[Started] = field(default_factory=list[Started])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it: no command outlives it."""
        for command in self.started:
            if command.process.returncode is None:
                await command.kill()

    async def begin(self, *arguments: str | Path) -> Started:
        """Start a command."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self.module,
            *map(str, arguments),
            cwd=ROOT,
            env=self.surroundings(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.started.append(Started(process))
        return self.started[-1]

    async def run(self, *arguments: str | Path) -> Ended:
        """Start a command and wait for its end."""
        return await (await self.begin(*arguments)).ended()

    def show(self, *arguments: str) -> str:
        """Run a command whose output is a terminal; returns all that this was sent."""
        ours, theirs = pty.openpty()
        command = [sys.executable, *self.module, *arguments]
        environment = self.surroundings() | {"TERM": "xterm"}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs):
            os.close(theirs)
            shown = b""
            with FileIO(ours) as screen, suppress(OSError):  # An error, once nobody writes to it any more.
                while some := screen.read(1 << 16):
                    shown += some
        return shown.decode()

    def surroundings(self) -> dict[str, str]:
        """The environment of a command."""
        return {
            "PATH": os.environ["PATH"],
            "AGENT_RELAY_URL": self.url,
            "AGENT_RELAY_API_KEY": KEYS["acme"],
            "AGENT_RELAY_USER_ID": self.user_id,
            **self.environment,
        }

    def file(self, name: str, content: str) -> Path:
        """Write a file of rows."""
        path = self.folder / name
        path.write_text(content)
        return path

    def files(self) -> list[str]:
        """Name the user's files."""
        return sorted(path.name for path in self.folder.iterdir())


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, each of which must be whole."""
    text = path.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def outputs_of(path: Path) -> dict[str, Any]:
    """Read the outputs of a file of results, in which each `custom_id` must stand once."""
    results = lines_of(path)
    assert set(Counter(result["custom_id"] for result in results).values()) <= {1}
    return {result["custom_id"]: result["output"] for result in results}


async def batches_of(client: Client) -> list[dict[str, Any]]:
    """List the user's batches."""
    return (await client.http.get("/batches", params={"limit": 100})).json()["items"]
