"""Every mutation still fits the code it breaks, and names a test that is there; `make test-mutations` runs them."""

from __future__ import annotations

import ast
from pathlib import Path

import psutil
import pytest

from tests.eventually import eventually
from tests.mutations import __main__ as runner
from tests.mutations.__main__ import GREEN, MUTATIONS, RED, ROOT, run_tests
from tests.mutations.mutation import Mutation

HANGING = """
import pathlib, subprocess

def test_hangs():
    child = subprocess.Popen(["sleep", "90"])
    pathlib.Path("child").write_text(str(child.pid))
    child.wait()
"""


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks)
def test_a_mutation_fits_the_code_and_names_its_test(mutation: Mutation) -> None:
    broken = mutation.broken(ROOT)
    path, _, test = mutation.test.partition("::")
    name, _, _ = test.partition("[")

    if mutation.path.endswith(".py"):
        ast.parse(broken)  # An error of syntax would turn every test red.
    assert f"def {name}(" in (ROOT / path).read_text()


def test_tests_that_hang_are_killed_with_all_that_they_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LONGEST_SECONDS", 6)
    monkeypatch.setattr(runner, "TEST_SECONDS", 0)
    (tmp_path / "test_hanging.py").write_text(HANGING)

    ended, said = run_tests(tmp_path, ["test_hanging.py"])

    assert ended not in {GREEN, RED}
    assert "hung" in said
    eventually(lambda: not psutil.pid_exists(int((tmp_path / "child").read_text())))
