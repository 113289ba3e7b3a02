"""What a tool does to the process it runs in ends its own run, once, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Client
from tests.support.eventually import DEADLINE_SECONDS, eventually, soon
from tests.support.service import ROOT, START_SECONDS, STOP_SECONDS, Running, Service, serving

USER = "11111111-1111-4111-8111-111111111111"
AGENTS = "guest=tests.support.guests:served,slow=tests.support.agents:slow,echo=tests.support.agents:echo"

SUCCEED = {
    "exit_in_a_callback": "went on",
    "exit_in_a_forgotten_task": "True",
    "alarm": "alarmed",
    "user_signal": "sent",
    "ignores_sigterm": "ignored",
    "takes_sigterm": "taken",
    "takes_the_wakeup_descriptor": "taken",
    "terminates_a_fork_sync": "-15",
    "terminates_a_fork_async": "-15",
    "interrupts_a_fork": "1",
    "pool_of_forks": "[1, 2]",
    "forked_child_exits": "5",
    "forked_child_raises": "1",
    "forked_child_runs_on": "0",
    "forked_child_is_terminated": "-15",
    "forked_child_of_the_loop_exits": "5",
    "forked_child_of_the_loop_runs_on": "0",
    "forked_child_of_the_loop_waits": "1",
    "forked_child_of_the_loop_waits_for_another_task": "0",
    "forked_child_of_the_loop_leaves": "6",
    "kills_a_subprocess": "-15",
    "kills_an_asyncio_subprocess": "-9",
    "changes_directory": "nowhere",
    "changes_the_mask": "masked",
    "changes_the_environment": "changed",
    "runs_a_loop_in_a_thread": "ran",
    "stops_the_loop": "went on",
    "closes_stdout": "closed",
    "closes_stderr": "closed",
    "loses_sys_stdout": "lost",
    "closes_sys_stdout": "closed",
    "collects_no_garbage": "off",
    "thread_raises": "raised",
    "warnings_are_errors": "strict",
    "disables_logging": "silent",
    "configures_logging": "silent",
    "shuts_logging_down": "down",
    "limits_a_child": "8",
    "limits_files_in_a_thread": "changed",
    "limits_recursion": "60",
    "replaces_sleep_in_a_thread": "PermissionError",
    "repeats_itself_in_a_thread": "changed",
    "makes_no_log_records_in_a_thread": "changed",
    "cancels_its_own_tasks": "True",
    "handles_exceptions_badly": "handled",
    "debugs_the_loop": "debugs",
    "loses_the_loop": "lost",
    "replaces_the_policy": "replaced",
    "traces_everything": "traces",
    "hooks_threads": "hooked",
    "ticks": "0.0",
    "freezes_garbage": "frozen",
    "filters_the_log": "silent",
    "seeds_chance": "0.8444218515250481",
    "hurries_sockets": "hurried",
    "speaks_another_language": "C.UTF-8",
    "counts_in_another_way": "1",
    "leaves_a_stubborn_task": "left",
    "starts_an_endless_thread": "started",
    "starts_an_endless_process": "started",
    "prints_for_a_while": "printed",
    "holds_the_loop": "held",
}
"""What each of these tools answers; its run goes on as if it were alone in the world."""

FAIL = {
    "exit_sync": "SystemExit",
    "exit_async": "SystemExit",
    "exit_0_async": "SystemExit",
    "keyboard_interrupt_sync": "KeyboardInterrupt",
    "keyboard_interrupt_async": "KeyboardInterrupt",
    "generator_exit_sync": "GeneratorExit",
    "generator_exit_async": "GeneratorExit",
    "cancelled_sync": None,
    "cancelled_async": None,
    "cancels_its_task": None,
    "base_exception_async": "Unforeseen",
    "stop_iteration_sync": "RuntimeError",
    "stop_iteration_async": "RuntimeError",
    "exit_in_a_group": "BaseExceptionGroup",
    "exit_in_a_task": "SystemExit",
    "recursion": "RecursionError",
    "memory_error": "MemoryError",
    "kills_itself_softly_sync": "PermissionError",
    "kills_itself_softly_async": "PermissionError",
    "kills_its_group": "PermissionError",
    "raises_a_signal": "PermissionError",
    "interrupts_the_main_thread": "PermissionError",
    "signal_in_a_thread": "ValueError",
    "runs_a_loop_in_the_loop": "RuntimeError",
    "closes_the_loop": "RuntimeError",
    "shuts_the_threads_down": "PermissionError",
    "nests_asyncio": "ValueError",
    "cancels_all_tasks": None,
    "cancels_all_other_tasks": None,
    "cancels_all_tasks_from_a_thread": None,
    "cancels_all_tasks_that_it_finds": "PermissionError",
    "cancels_all_tasks_that_it_finds_from_a_thread": None,
    "cancels_whatever_it_may": None,
    "makes_no_tasks": "PermissionError",
    "replaces_the_threads": "PermissionError",
    "replaces_call_soon": "PermissionError",
    "replaces_asyncio": "PermissionError",
    "replaces_sleep": "PermissionError",
    "stops_the_clock": "PermissionError",
    "repeats_itself": "PermissionError",
    "limits_files": "PermissionError",
    "makes_no_log_records": "PermissionError",
}
"""What each of these tools raises; None where it cancels its own run."""


@dataclass
class Host:
    """A service with one worker, in which all the tools are called, and a run that is under way all the time."""

    service: Service
    api: Running
    worker: Running
    bystander_id: str = ""


@pytest.fixture(scope="module")
def host(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("guests"), {"AGENTS": AGENTS}) as service:
        yield Host(service, service.api(), service.worker())


@pytest.fixture
async def client(host: Host) -> AsyncGenerator[Client]:
    async with Client(host.api.url, user_id=USER) as client:
        if not host.bystander_id:
            host.bystander_id = (await client.run("3000 seconds", agent_type="slow", deadline_s=3600))["id"]
        yield client


async def ended(client: Client, query: str, agent_type: str = "guest", **options: Any) -> dict[str, Any]:
    """Have a query answered."""
    return await client.ended((await client.run(query, agent_type=agent_type, **options))["id"])


@pytest.mark.parametrize("tool", [*SUCCEED, *FAIL])
async def test_a_tool_ends_its_own_run_and_nobody_elses(host: Host, client: Client, tool: str) -> None:
    guest = await ended(client, tool)
    later = await ended(client, "still here", "echo")
    bystander = await client.read(host.bystander_id)

    assert host.worker.process.poll() is None, host.worker.last_words()
    assert (bystander["status"], bystander["attempt"]) == ("running", 1)
    assert (later["status"], later["output"], later["attempt"]) == ("succeeded", "You said: still here", 1)
    assert guest["attempt"] == 1, guest
    if tool in SUCCEED:
        assert (guest["status"], guest["output"]) == ("succeeded", SUCCEED[tool]), guest
    else:
        said = f"The agent raised {FAIL[tool]}." if FAIL[tool] else "The agent cancelled its own run."
        assert guest["error"], guest
        assert (guest["error"]["code"], guest["error"]["message"]) == ("agent_error", said)


async def test_what_makes_dependencies_ends_its_own_run(host: Host, client: Client) -> None:
    guest = await ended(client, "exit_sync", metadata={"dependencies": "exit"})

    assert (guest["error"]["code"], guest["error"]["message"]) == ("agent_error", "The agent raised SystemExit.")
    assert (await client.read(host.bystander_id))["attempt"] == 1


PUT_BACK = {
    "ignores_sigterm": "signal handlers",
    "closes_stdout": "standard streams",
    "configures_logging": "the log",
    "filters_the_log": "the log",
    "limits_files_in_a_thread": "resource limits",
    "makes_no_log_records_in_a_thread": "settings of the interpreter",
    "traces_everything": "settings of the interpreter",
    "hooks_threads": "settings of the interpreter",
    "collects_no_garbage": "settings of the interpreter",
    "warnings_are_errors": "warnings as errors",
    "repeats_itself_in_a_thread": "shared modules",
    "replaces_the_policy": "shared modules",
    "debugs_the_loop": "settings of the event loop",
    "handles_exceptions_badly": "settings of the event loop",
    "changes_the_environment": "environment variables of libpq",
}


async def test_what_belongs_to_the_process_is_put_back_and_the_log_says_who_was_there(host: Host) -> None:
    """It is put back before the end of the run is stored, so that no later run meets it."""
    worker = await asyncio.to_thread(host.service.worker, POOL="other", AGENTS="other=tests.support.guests:served")
    async with Client(host.api.url) as client:
        for tool, what in PUT_BACK.items():
            run_id = (await client.run(tool, agent_type="other"))["id"]
            await client.ended(run_id)
            named = rf"process_guard\.put_back what='{what}' in_flight=\S*{run_id}:other"
            await asyncio.to_thread(worker.await_line, named)
            again = await ended(client, "terminates_a_fork_sync", "other")
            assert (again["status"], again["output"]) == ("succeeded", "-15"), tool

    worker.await_line(r"process_guard\.put_back .* run_id=")  # As a run ended: the look each second is of no run.
    assert await asyncio.to_thread(worker.terminate) == 0
    worker.await_line(r"worker\.stopped")


async def test_a_worker_waits_for_nothing_that_its_agents_have_left(host: Host) -> None:
    worker = await asyncio.to_thread(host.service.worker, POOL="other", AGENTS="other=tests.support.guests:served")
    async with Client(host.api.url) as client:
        for tool in ("starts_an_endless_thread", "starts_an_endless_process", "leaves_a_stubborn_task"):
            assert (await ended(client, tool, "other"))["status"] == "succeeded"
        blocked = await ended(client, "blocks_for_ever", "other", deadline_s=0.2)

    assert blocked["error"]["code"] == "deadline_exceeded"
    assert await asyncio.to_thread(worker.terminate) == 0
    worker.await_line(r"process_guard\.left_behind threads=.*_sleep_for_ever")


async def test_tools_that_never_return_keep_no_threads_from_others(client: Client) -> None:
    blocked = [await client.run("blocks_for_ever", agent_type="guest", deadline_s=5) for _ in range(45)]

    async def under_way() -> bool:
        return (await client.read(blocked[-1]["id"]))["status"] == "running"

    assert await soon(under_way)
    beside = await ended(client, "seeds_chance")
    ends = [await client.ended(run["id"]) for run in blocked]

    assert beside["status"] == "succeeded"
    assert [end["error"]["code"] for end in ends] == ["deadline_exceeded"] * 45


async def test_a_tool_that_blocks_the_loop_is_named_as_its_process_ends(host: Host) -> None:
    impatient = {"STUCK_LOOP_SECONDS": "1", "LEASE_SECONDS": "600", "BEAT_SECONDS": "0.2"}
    worker = await asyncio.to_thread(
        host.service.worker, POOL="other", AGENTS="other=tests.support.guests:served", **impatient
    )
    async with Client(host.api.url) as client:
        run = await client.run("blocks_the_loop", agent_type="other")
        assert await asyncio.to_thread(worker.process.wait, DEADLINE_SECONDS) == os.EX_SOFTWARE
        worker.await_line(rf"lease\.loop_stuck at=.+guests\.py:\d+ in_flight={run['id']}:other")
        await client.http.post(f"/runs/{run['id']}/cancel")


async def test_a_tool_that_closes_everything_is_named_as_its_process_dies(service: Service) -> None:
    patience = {"LEASE_SECONDS": "600", "BEAT_SECONDS": "1", "AGENTS": AGENTS}
    api = service.api(**patience)
    parent = service.worker("--processes", "1", **patience)
    async with Client(api.url) as client:
        bystander = await client.run("1 second", agent_type="slow")
        guest = await ended(client, "closes_everything")
        bystander = await client.ended(bystander["id"])

    assert (guest["error"]["code"], guest["attempt"]) == ("worker_crashed", 3)
    assert bystander["status"] == "succeeded"
    named = f"take_back.worker_died run_id={guest['id']} agent=guest crashes=1"
    eventually(lambda: any(named in process.log.read_text(errors="replace") for process in (api, parent)))


async def test_what_is_printed_and_never_read_stops_nobody_else(host: Host) -> None:
    """Both streams are one pipe that nobody reads; the worker's own log is written into it, too."""
    environment = host.service.surroundings() | {
        "POOL": "other",
        "AGENTS": "other=tests.support.guests:served,tick=tests.support.agents:slow",
    }
    process = subprocess.Popen(  # noqa: ASYNC220  (it is to have a pipe that nobody reads)
        [sys.executable, "-m", "agent_relay.worker"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout
        for line in process.stdout:
            if b"worker.ready" in line:
                break
        async with Client(host.api.url) as client:
            bystander = await client.run("2 seconds", agent_type="tick")
            guest = await ended(client, "prints_a_gigabyte", "other", deadline_s=1)
            failed = [await ended(client, "memory_error", "other") for _ in range(30)]  # Each has pages of log.
            bystander = await client.ended(bystander["id"])

        assert guest["error"]["code"] == "deadline_exceeded"
        assert {run["error"]["code"] for run in failed} == {"agent_error"}
        assert (bystander["status"], bystander["attempt"]) == ("succeeded", 1)
        process.terminate()
        assert await asyncio.to_thread(process.wait, STOP_SECONDS) == 0
    finally:
        process.kill()
        process.communicate()


# Modules that are imported.

HEAD = "import logging, os, signal, sys, threading, time"
ENDS = {
    "exits": ("sys.exit(0)", "SystemExit: 0"),
    "exits_with_words": ("sys.exit('no key')", "SystemExit: no key"),
    "raises_system_exit": ("raise SystemExit", "SystemExit"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "generator_exits": ("raise GeneratorExit('x')", "GeneratorExit: x"),
    "stops_itself": ("os.kill(os.getpid(), signal.SIGTERM)", "PermissionError: An agent may not send SIGTERM"),
}
CHANGES = {
    "signals": "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, lambda *_: None)",
    "prints": "print('x' * 100_000)",
    "threads": "threading.Thread(target=time.sleep, args=(3600,)).start()",
    "closes": "os.close(0); os.close(1)",
    "silences": "logging.basicConfig(force=True, filename=os.devnull); logging.disable()",
    "loses_streams": "sys.stdout = sys.stderr = None",
}


def serving_modules(folder: Path, lines: dict[str, str]) -> dict[str, str]:
    """Write modules that do something and then have an agent; returns the environment of a worker that serves them."""
    for name, line in lines.items():
        (folder / f"{name}.py").write_text(f"{HEAD}\n{line}\nfrom tests.support.agents import echo\n")
    agents = ",".join(f"{name}={name}:echo" for name in lines)
    return {"AGENTS": agents, "PYTHONPATH": str(folder), "POOL": "imported"}


def test_an_import_that_ends_the_process_gets_a_sentence(service: Service, tmp_path: Path) -> None:
    worker = service.begin("worker", **serving_modules(tmp_path, {name: line for name, (line, _) in ENDS.items()}))

    assert worker.process.wait(START_SECONDS) == 1
    said = worker.last_words()
    for name, (_, why) in ENDS.items():
        assert f"AGENTS: {name} ({name}:echo) cannot be imported: {why}" in said
        assert f"{name}.py, line 2" in said
    assert "Traceback" not in said


async def test_what_an_import_does_to_the_process_does_not_outlive_it(host: Host, tmp_path: Path) -> None:
    worker = await asyncio.to_thread(host.service.worker, **serving_modules(tmp_path, CHANGES))
    async with Client(host.api.url) as client:
        runs = [await ended(client, "hello", name) for name in CHANGES]

    assert [run["output"] for run in runs] == ["You said: hello"] * len(CHANGES)
    assert await asyncio.to_thread(worker.terminate) == 0
    worker.await_line(r"worker\.stopped")


def test_an_import_that_takes_long_is_named(service: Service, tmp_path: Path) -> None:
    worker = service.begin("worker", **serving_modules(tmp_path, {"comes_late": "time.sleep(3600)"}))

    worker.await_line(r"catalog\.slow_import agent=comes_late path=comes_late:echo at=\S+comes_late\.py:2")

    assert worker.terminate() == 0
