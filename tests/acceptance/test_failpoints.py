"""Failpoints do nothing unless they are told to, and then what they are told, once."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from pydantic import ValidationError

from agent_relay.shared.failpoints import Failpoint
from agent_relay.shared.settings import Settings
from tests.support.service import ROOT

SERVERS = {"database_url": "postgresql://u:p@h/d", "redis_url": "redis://h"}


def comes_by(times: int, *traps: str) -> subprocess.CompletedProcess[str]:
    """Have a process come by two failpoints, so many times."""
    script = f"""
from shared import failpoints
from agent_relay.shared.settings import Settings
settings = Settings(database_url="postgresql://h/d", redis_url="redis://h", failpoints="{" ".join(traps)}")
failpoints.arm(settings.failpoints)
for time in range({times}):
    failpoints.reached(failpoints.Failpoint.RUN_CLAIMED)
    failpoints.reached(failpoints.Failpoint.RUN_STORED)
    print(time, flush=True)
"""
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_process_lives_through_failpoints_that_nobody_named() -> None:
    done = comes_by(2)

    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n", "")


def test_a_process_dies_where_it_is_told_to_and_says_so() -> None:
    done = comes_by(5, "run_stored=kill@2")

    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "0\n1\n")
    assert "failpoint.reached name=run_stored action=kill pid=" in done.stderr


@pytest.mark.parametrize("trap", ["run_started=kill", "run_stored=explode", "run_stored", "run_stored=kill@never"])
def test_what_is_no_failpoint_stops_the_start(trap: str) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({**SERVERS, "failpoints": trap})


def test_every_failpoint_can_be_named() -> None:
    traps = Settings.model_validate({**SERVERS, "failpoints": ",".join(f"{name}=freeze@1" for name in Failpoint)})

    assert [trap.name for trap in traps.failpoints] == list(Failpoint)
