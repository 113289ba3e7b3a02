"""Processes beside the one that measures, and what they cost."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress

import psutil

from tests.support.service import ROOT

OPEN_FILES = 16_000


@contextmanager
def module(name: str, *arguments: str, **environment: str) -> Generator[subprocess.Popen[str]]:
    """Run `python -m benchmarks.<name>` with pipes to its standard input and output, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()  # It keeps nothing, and might wait for open streams.
        process.wait()


def heard(process: subprocess.Popen[str]) -> str:
    """Wait for the next line that a process says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args} ended with {process.wait()}"
    return line.strip()


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Say a line to a process."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def cpu_seconds(pids: Iterable[int]) -> float:
    """Sum the CPU that these processes and all they ever started have used."""
    seconds = 0.0
    for pid in pids:
        for process in _family(pid):
            with suppress(psutil.NoSuchProcess):  # It has just ended: its parent counts it from here on.
                times = process.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def resident_bytes(pid: int) -> int:
    """Read how much memory a process holds."""
    return psutil.Process(pid).memory_info().rss


def allow_many_sockets() -> None:
    """Raise the limit of open files, for this process and those it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))


def port_of(url: str) -> int:
    """Read the port of a URL."""
    match = re.search(r":(\d+)", url)
    assert match
    return int(match[1])


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
