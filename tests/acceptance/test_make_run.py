"""`make run` as a stranger pastes it: everything in one terminal, kept over a restart, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from agent_relay.embedded.first_steps import agent_to_ask, lines_to_paste
from tests.support.eventually import eventually
from tests.support.service import ROOT


@pytest.fixture
def home() -> Iterator[Path]:
    """A place for the data that the servers' account can enter."""
    with tempfile.TemporaryDirectory(prefix="agent-relay home ", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def running(home: Path, **environment: str) -> Generator[tuple[subprocess.Popen[str], Path]]:
    """Start everything; at the end Ctrl-C must leave nothing running."""
    output = home / "terminal"
    with output.open("w") as terminal:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "agent_relay.embedded", "--home", home],
            cwd=ROOT,
            env=os.environ | {"PORT": "0", "SCRIPTED_TOKENS_PER_SECOND": "400", **environment},
            stdout=terminal,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        eventually(lambda: re.search(r"^ready$", output.read_text(), re.MULTILINE) or launcher.poll() is not None)
        assert launcher.poll() is None, output.read_text()
        yield launcher, output
        children = psutil.Process(launcher.pid).children(recursive=True)
    finally:
        os.killpg(launcher.pid, signal.SIGINT)
        assert launcher.wait(30) == 0 or launcher.returncode == 130, output.read_text()
    assert [child for child in children if child.is_running()] == []


def pasted(output: Path) -> str:
    """The lines that the launcher says to paste."""
    return "\n".join(line for line in output.read_text().splitlines() if re.match(r"\s*(export|curl) ", line))


def paste(*lines: str) -> str:
    """Run lines as a shell would, and return what they print."""
    return subprocess.run(
        ["bash", "-ec", "\n".join(lines)], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_the_pasted_lines_answer_and_the_thread_survives_a_restart(home: Path) -> None:
    with running(home) as (_, output):
        answers = paste(pasted(output), 'echo; echo "$THREAD_ID"')
        thread_id = answers.split()[-1]
        assert "$1123.45" in answers or "$1245.95" in answers
        events = [json.loads(line)["event"] for line in answers.splitlines() if line.startswith('{"id":')]
        assert events[-1] == "done"
        assert events.count("text_delta") >= 5

    with running(home) as (_, output):
        exports = [line for line in pasted(output).splitlines() if "THREAD_ID" not in line and "export" in line]
        body = shlex.quote(json.dumps({"thread_id": thread_id, "query": "And with pending transactions?"}))
        again = paste(
            *exports,
            'curl -s "$BASE_URL/agent/query" -H "X-API-Key: $API_KEY" -H "X-User-ID: $USER_ID" '
            f"-H 'Content-Type: application/json' -d {body}",
        )
        assert "$1123.45" in json.loads(again)["response"]


def test_the_link_signs_a_browser_in_once(home: Path) -> None:
    with running(home) as (_, output):
        link = re.search(r"Open (http://\S+) in a browser", output.read_text())
        assert link, output.read_text()
        address, code = link[1].split("/sign-in#code=")
        headers = {"X-Agent-Relay-Page": "1", "Origin": address}
        with httpx.Client(base_url=address) as browser:
            answers = [browser.post("/console/session", json={"code": code}, headers=headers) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [204, 401]
            user_id = browser.get("/console/session").json()["user_id"]
        assert f"export USER_ID={user_id}" in output.read_text()


def test_the_pasted_lines_ask_an_agent_that_is_served(home: Path) -> None:
    with running(home, AGENTS="echo=tests.support.agents:echo", MODEL="test") as (_, output):
        answers = paste(pasted(output))
    assert "bank_support" not in output.read_text()
    assert json.loads(answers.splitlines()[0])["output"]
    assert json.loads(answers.splitlines()[-1])["event"] == "done"


@pytest.mark.parametrize(
    ("agents", "asked"),
    [
        (None, "bank_support"),
        ("", "bank_support"),
        ("haiku=my_agents:haiku", "haiku"),
        ("a=b:c, bank_support=agent_relay.worker.agents.bank_support:served", "bank_support"),
        ("first=a:b second=a:c", "first"),
        ("first=a:b\nsecond=a:c", "first"),
    ],
)
def test_which_agent_is_asked(agents: str | None, asked: str) -> None:
    assert agent_to_ask(agents) == asked
    assert json.dumps({"agent_type": asked}) in lines_to_paste(8000, "key", "user", agent_to_ask(agents))


def test_a_part_that_dies_is_named_and_restarted(home: Path) -> None:
    with running(home) as (launcher, output):
        children = psutil.Process(launcher.pid).children(recursive=True)
        worker = next(child for child in children if "agent_relay.worker" in child.cmdline())
        worker.kill()
        eventually(lambda: "worker died of SIGKILL" in output.read_text())
        eventually(lambda: output.read_text().count("worker.ready") == 2)
