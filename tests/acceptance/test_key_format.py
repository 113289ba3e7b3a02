"""A key is made by any Python, before anything is installed."""

import re
import subprocess
import sys
from pathlib import Path

from agent_relay.shared.key_format import hash_key
from tests.support.service import ROOT


def test_a_key_is_made_by_any_python_without_any_package(tmp_path: Path) -> None:
    bare = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        "import sys; sys.path[:0] = ['src']; from agent_relay.shared.key_format import main; main()",
    ]
    done = subprocess.run([*bare, "acme"], cwd=ROOT, capture_output=True, text=True, check=True)
    wrong = subprocess.run([*bare, "Acme Inc"], cwd=ROOT, capture_output=True, text=True, check=False)

    key, pair = re.findall(r"(ar_\S+|acme:\S+)", done.stdout)
    assert pair == f"acme:{hash_key(key.encode())}"
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (1, "", 1)
    recipe = subprocess.run(
        ["make", "--dry-run", "key", "TENANT=acme", f"VENV={tmp_path}/none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip" not in recipe.stdout
