"""A mutation that makes its test hang is told from one that the test notices."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from tests.mutations import __main__ as runner
from tests.mutations.__main__ import GREEN, RED, run_tests
from tests.support.eventually import eventually

HANGING = """
import pathlib, subprocess

def test_hangs():
    child = subprocess.Popen(["sleep", "90"])
    pathlib.Path("child.new").write_text(str(child.pid))
    pathlib.Path("child.new").rename("child")
    child.wait()
"""


def test_tests_that_hang_are_killed_with_all_that_they_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the runner starts once the test hangs: pytest may take any time to start."""

    class Started(subprocess.Popen[str]):
        def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:  # noqa: A002
            eventually((tmp_path / "child").exists)
            return super().communicate(input, timeout)

    monkeypatch.setattr(runner.subprocess, "Popen", Started)
    monkeypatch.setattr(runner, "LONGEST_SECONDS", 1)
    monkeypatch.setattr(runner, "TEST_SECONDS", 0)
    (tmp_path / "test_hanging.py").write_text(HANGING)

    ended, said = run_tests(tmp_path, ["test_hanging.py"])

    assert ended not in {GREEN, RED}
    assert "hung" in said
    eventually(lambda: not psutil.pid_exists(int((tmp_path / "child").read_text())))
