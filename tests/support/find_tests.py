"""List the tests of a file: `python -m tests.support.find_tests shared/runs/claim.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.mutations.__main__ import MUTATIONS, ROOT


def find_tests(path: str) -> list[str]:
    """Name the test files that bear the file's name or import it, and the tests that a broken promise of it turns red.

    `path` is relative to the root of the repository.
    """
    module = Path(path).with_suffix("")
    imports = f"agent_relay.{'.'.join(module.parts)} import"
    found = {mutation.test for mutation in MUTATIONS if mutation.path == path}
    for test in (ROOT / "tests").rglob("test_*.py"):
        if test.stem == f"test_{module.name}" or imports in test.read_text():
            found.add(str(test.relative_to(ROOT)))
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(find_tests(sys.argv[1]) or ["No test names this file."]))  # noqa: T201
