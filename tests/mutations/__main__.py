"""Run the mutations, or those whose name or file holds a word: `python -m tests.mutations [word …]`.

Each breaks a copy of the tree of its own. First the named tests must be green in a copy that nobody broke.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutations import (
    admission,
    ag_ui,
    ai_sdk,
    batches,
    budgets,
    command_line,
    entered,
    faults,
    files,
    found,
    http_edges,
    idempotency,
    identity,
    javascript_client,
    later,
    messages,
    models,
    network,
    openai,
    options,
    pages,
    queue,
    recovery,
    refusals,
    relay,
    servers,
    shown,
    steering,
    threads,
    usage,
    waiting,
    webhooks,
)
from tests.mutations.mutation import DoesNotApply, Mutation

LAWS = (
    relay,
    shown,
    servers,
    queue,
    recovery,
    refusals,
    admission,
    idempotency,
    identity,
    javascript_client,
    later,
    steering,
    messages,
    batches,
    waiting,
    threads,
    usage,
    entered,
    openai,
    ai_sdk,
    ag_ui,
    options,
    webhooks,
    command_line,
    faults,
    files,
    found,
    models,
    network,
    pages,
    http_edges,
    budgets,
)
MUTATIONS = [mutation for law in LAWS for mutation in law.MUTATIONS]
ROOT = Path(__file__).parents[2]
ROOMS = ["api", "client", "embedded", "shared", "src", "worker", "tests"]
AT_ONCE = 2
GREEN, RED = 0, 1
"""How pytest ends; anything else (no such test, no server, a hang) is neither."""
HUNG = -1
TEST_SECONDS = 60
"""What a test has that does not say for itself how long it may take."""
LONGEST_SECONDS = 300
"""What a test may say; beyond that, and the time of the others, pytest itself hangs."""


def run_tests(tree: Path, tests: list[str]) -> tuple[int, str]:
    """Run tests in a copy of the tree; returns how pytest ended and what it said."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", str(TEST_SECONDS), *tests]
    with subprocess.Popen(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as testing:
        try:
            said, _ = testing.communicate(timeout=LONGEST_SECONDS + TEST_SECONDS * len(tests))
        except subprocess.TimeoutExpired:
            os.killpg(testing.pid, signal.SIGKILL)
            return HUNG, "It hung, and was killed with all that it had started."
    return testing.returncode, said[-3000:]


def copy_tree(folder: str) -> Path:
    """Copy what tests need."""
    tree = Path(folder, "tree")
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def verdict(mutation: Mutation) -> str:
    """Break the code and say what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(folder)
        try:
            (tree / mutation.path).write_text(mutation.broken(tree))
        except DoesNotApply as reason:
            return f"DOES NOT APPLY: {reason}"
        ended, said = run_tests(tree, [mutation.test])
        return {GREEN: "SURVIVED", RED: "red"}.get(ended, f"WAS NOT TESTED\n{said}")


def main(words: list[str]) -> int:
    """Print a line a mutation; 0 where each turned its test red."""
    chosen = [m for m in MUTATIONS if not words or any(word in f"{m.breaks} {m.path}" for word in words)]
    if not chosen:
        print(f"No mutation speaks of {' or '.join(words)}.")  # noqa: T201
        return 1
    with tempfile.TemporaryDirectory() as folder:
        ended, said = run_tests(copy_tree(folder), sorted({mutation.test for mutation in chosen}))
    if ended != GREEN:
        print(f"The tests are not green where nothing is broken.\n{said}")  # noqa: T201
        return 1
    width = max(len(mutation.breaks) for mutation in chosen)
    escaped = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mutation, what in zip(chosen, pool.map(verdict, chosen), strict=True):
            escaped += what != "red"
            print(f"{mutation.breaks:{width}}  {what:8}  {mutation.test}", flush=True)  # noqa: T201
    print(f"{len(chosen) - escaped} of {len(chosen)} mutations turned their tests red.")  # noqa: T201
    return 1 if escaped else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
