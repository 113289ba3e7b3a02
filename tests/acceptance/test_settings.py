"""A setting that is wrong ends each process with a sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SERVERS = {"DATABASE_URL": "postgresql://relay@127.0.0.1/relay", "REDIS_URL": "redis://127.0.0.1"}


@pytest.mark.parametrize("value", ["1_000", "\u0665", "nan", "70000"])
@pytest.mark.parametrize("module", ["api", "worker", "run"])
def test_a_process_ends_with_the_sentence_and_no_traceback(value: str, module: str, tmp_path: Path) -> None:
    environment = {**os.environ, **SERVERS, "PORT": value, "PYTHONUTF8": "1"}
    command = [sys.executable, "-P", "-m", "agent_relay", module]
    ended = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 1
    assert re.fullmatch(r"PORT must [^\n]+\.\n", ended.stderr)
