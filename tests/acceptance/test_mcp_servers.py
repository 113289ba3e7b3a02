"""Tools of real MCP servers: a session lives as long as its worker, and one that is broken is opened anew."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Client
from tests.support.eventually import eventually
from tests.support.service import ROOT, Service

AGENTS = "mcp=tests.support.mcp_agents:over_pipes,echo=tests.support.agents:echo"


def processes(ids: Path) -> list[str]:
    """Name the processes of the server, in the order in which they began."""
    return ids.read_text().split() if ids.exists() else []


async def answer(client: Client, tool: str, agent_type: str = "mcp") -> str:
    ended = await client.ended((await client.run(tool, agent_type=agent_type))["id"])
    return str(ended["output"] or ended["error"])


def environment(ids: Path, **others: str) -> dict[str, str]:
    return {"AGENTS": AGENTS, "MCP_IDS": str(ids), **others}


async def test_all_runs_of_a_worker_share_one_session(service: Service, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    api, worker = service.api(), service.worker(**environment(ids))
    assert processes(ids) == []

    async with Client(api.url) as client:
        answers = await asyncio.gather(*(answer(client, "process") for _ in range(8)))
        answers.append(await answer(client, "process"))
        assert await answer(client, "refuse")  # An error of a tool's own breaks no session.
        answers.append(await answer(client, "process"))

    assert set(answers) == {f"success: {pid}" for pid in processes(ids)}
    assert len(processes(ids)) == 1
    assert worker.terminate() == 0
    eventually(lambda: not Path(f"/proc/{processes(ids)[0]}").exists())


async def test_a_server_that_died_is_started_again_for_the_next_run(service: Service, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    api, worker = service.api(), service.worker(**environment(ids))

    async with Client(api.url) as client:
        first = await answer(client, "process")
        met_it = await answer(client, "crash")
        second = await answer(client, "process")
        os.kill(int(processes(ids)[1]), signal.SIGKILL)  # While no run is there to see it.
        await answer(client, "process")
        third = await answer(client, "process")

    assert [first, second, third] == [f"success: {pid}" for pid in processes(ids)]
    assert not met_it.startswith("success")
    assert worker.log.read_text().count("agents.session_broken agent=mcp") == 2


async def test_a_quarantined_run_has_a_session_too_which_ends_with_its_process(
    service: Service, tmp_path: Path
) -> None:
    ids = tmp_path / "ids"
    agents = "mcp=tests.support.mcp_agents:suspect,unused=tests.support.mcp_agents:over_pipes"
    api = service.api()
    service.worker("--processes", "1", **environment(ids, AGENTS=agents))

    async with Client(api.url) as client:
        run = await client.ended((await client.run("process", agent_type="mcp"))["id"])

    (pid,) = processes(ids)[-1:]
    assert (run["output"], run["attempt"]) == (f"success: {pid}", 2)
    eventually(lambda: not Path(f"/proc/{pid}").exists())


@contextmanager
def serving_over_http(ids: Path, port: int) -> Generator[subprocess.Popen[bytes]]:
    """Serve on that port until the end of the block."""
    before = len(processes(ids))
    command = [sys.executable, "-m", "tests.support.mcp_server", str(ids), str(port)]
    with (ids.parent / "mcp.log").open("ab") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        eventually(lambda: len(processes(ids)) > before and _answers(port))
        yield server
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


async def test_a_server_over_http_that_goes_and_comes_again(service: Service, tmp_path: Path) -> None:
    ids, port = tmp_path / "ids", free_port()
    served = environment(ids, MCP_PORT=str(port), AGENTS="mcp=tests.support.mcp_agents:over_http")
    api = service.api()
    service.worker(**served)

    async with Client(api.url) as client:
        before_it = await answer(client, "process")
        with serving_over_http(ids, port):
            first = [await answer(client, "process") for _ in range(2)]
        without_it = [await answer(client, "process") for _ in range(2)]
        with serving_over_http(ids, port):
            second = [await answer(client, "process") for _ in range(2)]

    pids = processes(ids)
    assert "The agent could not be entered" in before_it
    assert first == [f"success: {pids[0]}"] * 2
    assert not any(said.startswith("success") for said in without_it)
    assert "cannot reach one of its MCP servers" in without_it[1]
    assert second == [f"success: {pids[1]}"] * 2


@pytest.mark.parametrize(
    ("agent", "sentence"),
    [
        ("without_server", "The agent could not be entered: "),
        ("silent_server", "The agent was not ready within 2 s (AGENT_READY_SECONDS)."),
    ],
)
async def test_an_agent_that_cannot_be_entered_says_so_and_others_are_served(
    service: Service, tmp_path: Path, agent: str, sentence: str
) -> None:
    agents = f"mcp=tests.support.mcp_agents:{agent},echo=tests.support.agents:echo"
    api = service.api()
    worker = service.worker(**environment(tmp_path / "ids", AGENTS=agents, AGENT_READY_SECONDS="2"))

    async with Client(api.url) as client:
        begun = [await client.run("process", agent_type="mcp") for _ in range(3)]
        began = time.monotonic()
        assert (await client.ended((await client.run("hello", agent_type="echo"))["id"]))["status"] == "succeeded"
        assert time.monotonic() - began < 60
        ended: list[dict[str, Any]] = [await client.ended(run["id"]) for run in begun]

    assert {run["error"]["code"] for run in ended} == {"agent_error"}
    assert all(sentence in run["error"]["message"] for run in ended)
    assert "agents.not_entered agent=mcp" in worker.log.read_text()
    assert worker.terminate() == 0


async def test_a_run_whose_agent_is_still_being_entered_ends_at_its_deadline(service: Service, tmp_path: Path) -> None:
    served = environment(tmp_path / "ids", AGENTS="mcp=tests.support.mcp_agents:silent_server")
    api, worker = service.api(), service.worker(**served, AGENT_READY_SECONDS="600")

    async with Client(api.url) as client:
        ended = await client.ended((await client.run("process", agent_type="mcp", deadline_s=1))["id"])

    assert ended["error"]["code"] == "deadline_exceeded"
    assert "job.left_behind" in worker.log.read_text()
