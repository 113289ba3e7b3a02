"""An agent whose tools do to their process what their names say. The query's first word names the tool.

The answer is the tool's result.

Plain functions run in threads, coroutines on the event loop, as pydantic-ai has it.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import decimal
import gc
import locale
import logging
import logging.config
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any

import nest_asyncio  # pyright: ignore[reportMissingTypeStubs]
from pydantic_ai import Agent, ModelMessage, ModelResponse, RunContext, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from agent_relay.worker.catalog import RunScope, ServedAgent
from tests.support.agents import query_of

FORK = multiprocessing.get_context("fork")
LONG_SECONDS = 300


async def _calls_what_the_query_names(
    messages: list[ModelMessage], _info: AgentInfo
) -> AsyncIterator[str | DeltaToolCalls]:
    results = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    if results:
        yield str(results[-1].content)
    elif any(isinstance(message, ModelResponse) for message in messages):
        yield "no result"
    else:
        yield {0: DeltaToolCall(name=query_of(messages).split()[0], json_args="{}")}


def made_by(scope: RunScope) -> str:
    """Make dependencies, or not: a factory is an agent's code, too."""
    if scope.run_metadata.get("dependencies") == "exit":
        sys.exit(3)
    return "dependencies"


_agent = Agent(FunctionModel(stream_function=_calls_what_the_query_names), deps_type=str, name="guest")
served = ServedAgent(agent=_agent, dependencies=made_by)


@_agent.instructions
def instruct(ctx: RunContext[str]) -> str:
    """Instruct the model."""
    return ctx.deps


def _sleep_for_ever() -> None:
    """Sleep until killed, or until the test that began this is long over."""
    time.sleep(LONG_SECONDS)


# Ends of a process, a thread, a task or a generator.


class Unforeseen(BaseException):
    """What no `except Exception` catches."""


@_agent.tool_plain
def exit_sync() -> None:
    sys.exit(3)


@_agent.tool_plain
async def exit_async() -> None:
    sys.exit(3)


@_agent.tool_plain
async def exit_0_async() -> None:
    sys.exit(0)


@_agent.tool_plain
def keyboard_interrupt_sync() -> None:
    raise KeyboardInterrupt


@_agent.tool_plain
async def keyboard_interrupt_async() -> None:
    raise KeyboardInterrupt


@_agent.tool_plain
def generator_exit_sync() -> None:
    raise GeneratorExit


@_agent.tool_plain
async def generator_exit_async() -> None:
    raise GeneratorExit


@_agent.tool_plain
def cancelled_sync() -> None:
    raise asyncio.CancelledError


@_agent.tool_plain
async def cancelled_async() -> None:
    raise asyncio.CancelledError


@_agent.tool_plain
async def cancels_its_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(LONG_SECONDS)


@_agent.tool_plain
async def base_exception_async() -> None:
    raise Unforeseen


@_agent.tool_plain
def stop_iteration_sync() -> str:
    return next(iter(list[str]()))


@_agent.tool_plain
async def stop_iteration_async() -> str:
    return next(iter(list[str]()))


@_agent.tool_plain
async def exit_in_a_group() -> None:
    raise BaseExceptionGroup("both", [SystemExit(1), ValueError()])


@_agent.tool_plain
async def exit_in_a_task() -> None:
    async def leave() -> None:
        sys.exit(4)

    await asyncio.create_task(leave())


@_agent.tool_plain
async def exit_in_a_callback() -> str:
    asyncio.get_running_loop().call_soon(sys.exit, 4)
    await asyncio.sleep(0.05)
    return "went on"


@_agent.tool_plain
async def exit_in_a_forgotten_task() -> str:
    async def leave() -> None:
        sys.exit(4)

    task = asyncio.create_task(leave())
    await asyncio.sleep(0.05)
    return str(task.done())


@_agent.tool_plain
def recursion() -> None:
    recursion()


@_agent.tool_plain
def memory_error() -> None:
    raise MemoryError


# Signals.


@_agent.tool_plain
def kills_itself_softly_sync() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@_agent.tool_plain
async def kills_itself_softly_async() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@_agent.tool_plain
def kills_its_group() -> None:
    os.killpg(0, signal.SIGTERM)


@_agent.tool_plain
async def raises_a_signal() -> None:
    signal.raise_signal(signal.SIGINT)


@_agent.tool_plain
def interrupts_the_main_thread() -> None:
    _thread.interrupt_main()


@_agent.tool_plain
async def alarm() -> str:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    await asyncio.sleep(0.2)
    return "alarmed"


@_agent.tool_plain
def user_signal() -> str:
    os.kill(os.getpid(), signal.SIGUSR1)
    return "sent"


@_agent.tool_plain
async def ignores_sigterm() -> str:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return "ignored"


@_agent.tool_plain
async def takes_sigterm() -> str:
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    return "taken"


@_agent.tool_plain
async def takes_the_wakeup_descriptor() -> str:
    signal.set_wakeup_fd(-1)
    return "taken"


@_agent.tool_plain
def signal_in_a_thread() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# Other processes.


def _terminated(process: Any) -> str:
    process.start()
    process.terminate()
    process.join(20)
    return str(process.exitcode)


@_agent.tool_plain
def terminates_a_fork_sync() -> str:
    return _terminated(FORK.Process(target=_sleep_for_ever))


@_agent.tool_plain
async def terminates_a_fork_async() -> str:
    return _terminated(FORK.Process(target=_sleep_for_ever))


@_agent.tool_plain
def interrupts_a_fork() -> str:
    process = FORK.Process(target=_sleep_for_ever)
    process.start()
    assert process.pid
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    return str(process.exitcode)


@_agent.tool_plain
def pool_of_forks() -> str:
    with FORK.Pool(2) as pool:  # It terminates its processes.
        return str(pool.map(abs, [-1, -2]))


def _status_of(pid: int) -> str:
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


@_agent.tool_plain
def forked_child_exits() -> str:
    if not (pid := os.fork()):
        sys.exit(5)
    return _status_of(pid)


@_agent.tool_plain
def forked_child_raises() -> str:
    if not (pid := os.fork()):
        raise ValueError("in the child")
    return _status_of(pid)


@_agent.tool_plain
def forked_child_runs_on() -> str:
    if not (pid := os.fork()):
        return "the child's"
    return _status_of(pid)


@_agent.tool_plain
def forked_child_is_terminated() -> str:
    if not (pid := os.fork()):
        _sleep_for_ever()
    time.sleep(0.1)
    os.kill(pid, signal.SIGTERM)
    return _status_of(pid)


@_agent.tool_plain
async def forked_child_of_the_loop_exits() -> str:
    if not (pid := os.fork()):
        sys.exit(5)
    return _status_of(pid)


@_agent.tool_plain
async def forked_child_of_the_loop_runs_on() -> str:
    if not (pid := os.fork()):
        return "the child's"
    return _status_of(pid)


@_agent.tool_plain
async def forked_child_of_the_loop_waits() -> str:
    if not (pid := os.fork()):
        await asyncio.sleep(0.01)
        return "the child's"
    return _status_of(pid)


@_agent.tool_plain
async def forked_child_of_the_loop_waits_for_another_task() -> str:
    future = asyncio.get_running_loop().create_future()
    if not (pid := os.fork()):
        await future
        return "the child's"
    return _status_of(pid)


@_agent.tool_plain
async def forked_child_of_the_loop_leaves() -> str:
    if not (pid := os.fork()):
        os._exit(6)
    return _status_of(pid)


@_agent.tool_plain
def kills_a_subprocess() -> str:
    with subprocess.Popen(["sleep", "3600"]) as process:
        process.terminate()
        return str(process.wait(20))


@_agent.tool_plain
async def kills_an_asyncio_subprocess() -> str:
    process = await asyncio.create_subprocess_exec("sleep", "3600")
    process.kill()
    return str(await process.wait())


# What belongs to the whole process.


@_agent.tool_plain
def changes_directory() -> str:
    with tempfile.TemporaryDirectory() as gone:
        os.chdir(gone)
    return "nowhere"


@_agent.tool_plain
def changes_the_mask() -> str:
    os.umask(0o777)
    return "masked"


@_agent.tool_plain
def changes_the_environment() -> str:
    os.environ.clear()
    os.environ.update(PGOPTIONS="-c search_path=nowhere", PGSSLMODE="verify-full", HTTP_PROXY="http://127.0.0.1:1")
    return "changed"


@_agent.tool_plain
def runs_a_loop_in_a_thread() -> str:
    async def answer() -> str:
        await asyncio.sleep(0.01)
        return "ran"

    return asyncio.run(answer())


@_agent.tool_plain
async def runs_a_loop_in_the_loop() -> None:
    coroutine = asyncio.sleep(0)
    with contextlib.closing(coroutine):
        asyncio.run(coroutine)


@_agent.tool_plain
async def stops_the_loop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.05)
    return "went on"


@_agent.tool_plain
async def closes_the_loop() -> None:
    asyncio.get_running_loop().close()


@_agent.tool_plain
async def shuts_the_threads_down() -> None:
    await asyncio.get_running_loop().shutdown_default_executor()


@_agent.tool_plain
async def nests_asyncio() -> None:
    nest_asyncio.apply()


@_agent.tool_plain
async def replaces_asyncio() -> str:
    class Task:
        pass

    asyncio.Task = asyncio.tasks.Task = Task  # pyright: ignore[reportAttributeAccessIssue]
    asyncio.run = print
    return "replaced"


@_agent.tool_plain
async def replaces_sleep() -> None:
    asyncio.sleep = asyncio.tasks.sleep = print  # pyright: ignore[reportAttributeAccessIssue]


def _in_a_thread(change: Callable[[], Any]) -> str:
    """Change something where nothing says that it is the code of a run."""
    thread = threading.Thread(target=change)
    thread.start()
    thread.join()
    return "changed"


@_agent.tool_plain
def replaces_sleep_in_a_thread() -> str:
    raised: list[str] = []

    def replace() -> None:
        try:
            asyncio.sleep = print  # pyright: ignore[reportAttributeAccessIssue]
        except PermissionError as error:
            raised.append(type(error).__name__)

    _in_a_thread(replace)
    return ", ".join(raised)


@_agent.tool_plain
def repeats_itself_in_a_thread() -> str:
    return _in_a_thread(lambda: Context().run(setattr, uuid, "uuid4", lambda: uuid.UUID(int=0)))


@_agent.tool_plain
def limits_files_in_a_thread() -> str:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _in_a_thread(lambda: Context().run(resource.setrlimit, resource.RLIMIT_NOFILE, (8, hard)))


@_agent.tool_plain
def makes_no_log_records_in_a_thread() -> str:
    return _in_a_thread(lambda: Context().run(logging.setLogRecordFactory, lambda *_: 1 / 0))  # pyright: ignore[reportArgumentType]


@_agent.tool_plain
def limits_a_child() -> str:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))

    return subprocess.run(
        ["sh", "-c", "ulimit -n"], preexec_fn=limit, capture_output=True, text=True, check=True
    ).stdout.strip()


@_agent.tool_plain
async def cancels_all_tasks() -> None:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(LONG_SECONDS)


@_agent.tool_plain
async def cancels_all_other_tasks() -> None:
    for task in asyncio.tasks.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(LONG_SECONDS)


@_agent.tool_plain
async def cancels_all_tasks_from_a_thread() -> None:
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(lambda: [loop.call_soon_threadsafe(task.cancel) for task in asyncio.all_tasks(loop)])
    await asyncio.sleep(LONG_SECONDS)


def _found_tasks() -> list[asyncio.Task[Any]]:
    return [thing for thing in gc.get_objects() if isinstance(thing, asyncio.Task) and not thing.done()]


@_agent.tool_plain
async def cancels_all_tasks_that_it_finds() -> None:
    for task in _found_tasks():
        if task is not asyncio.current_task():
            task.cancel()
    await asyncio.sleep(LONG_SECONDS)


@_agent.tool_plain
def cancels_all_tasks_that_it_finds_from_a_thread() -> None:
    for task in _found_tasks():
        task.get_loop().call_soon_threadsafe(task.cancel)
    time.sleep(LONG_SECONDS)


@_agent.tool_plain
async def cancels_whatever_it_may() -> None:
    for task in _found_tasks():
        with contextlib.suppress(PermissionError):
            task.cancel()
    await asyncio.sleep(LONG_SECONDS)


@_agent.tool_plain
async def cancels_its_own_tasks() -> str:
    mine = asyncio.create_task(asyncio.sleep(LONG_SECONDS), name="mine")
    named = [task for task in asyncio.all_tasks() if task.get_name() == "mine"]
    for task in named:
        task.cancel()
    await asyncio.wait([mine])
    return str(mine.cancelled())


def _fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError


def _hear(*_: Any) -> None:
    """Do nothing."""


@_agent.tool_plain
async def makes_no_tasks() -> None:
    asyncio.get_running_loop().set_task_factory(_fail)


@_agent.tool_plain
async def replaces_the_threads() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))


@_agent.tool_plain
async def replaces_call_soon() -> None:
    task = asyncio.current_task()
    assert task
    task.get_loop().call_soon = print  # pyright: ignore[reportAttributeAccessIssue]


@_agent.tool_plain
async def handles_exceptions_badly() -> str:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_fail)
    loop.call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)
    return "handled"


@_agent.tool_plain
async def debugs_the_loop() -> str:
    asyncio.get_running_loop().set_debug(True)
    asyncio.get_running_loop().slow_callback_duration = 0
    return "debugs"


@_agent.tool_plain
async def loses_the_loop() -> str:
    asyncio.set_event_loop(None)
    return "lost"


@_agent.tool_plain
def replaces_the_policy() -> str:
    class Policy(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self) -> Any:
            raise RuntimeError

    asyncio.set_event_loop_policy(Policy())  # pyright: ignore[reportDeprecated]
    return "replaced"


@_agent.tool_plain
async def traces_everything() -> str:
    sys.settrace(_hear)
    sys.setprofile(_hear)
    return "traces"


@_agent.tool_plain
def hooks_threads() -> str:
    threading.excepthook = sys.excepthook = sys.unraisablehook = _fail
    return "hooked"


@_agent.tool_plain
async def ticks() -> str:
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    await asyncio.sleep(0.2)
    return str(signal.getitimer(signal.ITIMER_REAL)[1])


@_agent.tool_plain
def freezes_garbage() -> str:
    gc.freeze()
    return "frozen"


@_agent.tool_plain
def closes_stdout() -> str:
    os.close(1)
    return "closed"


@_agent.tool_plain
def closes_stderr() -> str:
    os.close(2)
    return "closed"


@_agent.tool_plain
def loses_sys_stdout() -> str:
    sys.stdout = None
    sys.stderr = None
    return "lost"


@_agent.tool_plain
def closes_sys_stdout() -> str:
    if sys.stdout:
        sys.stdout.close()
    return "closed"


@_agent.tool_plain
def collects_no_garbage() -> str:
    gc.disable()
    return "off"


@_agent.tool_plain
def thread_raises() -> str:
    def fail() -> None:
        raise ValueError("in a thread")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    return "raised"


@_agent.tool_plain
def warnings_are_errors() -> str:
    warnings.simplefilter("error")
    return "strict"


@_agent.tool_plain
def disables_logging() -> str:
    logging.disable(logging.CRITICAL)
    return "silent"


@_agent.tool_plain
def configures_logging() -> str:
    logging.config.dictConfig({"version": 1})
    logging.basicConfig(force=True, level=logging.CRITICAL, filename=os.devnull)
    return "silent"


@_agent.tool_plain
def shuts_logging_down() -> str:
    logging.shutdown()
    return "down"


@_agent.tool_plain
def makes_no_log_records() -> str:
    logging.setLogRecordFactory(lambda *_: 1 / 0)  # pyright: ignore[reportArgumentType]
    return "silent"


@_agent.tool_plain
def filters_the_log() -> str:
    logging.getLogger("agent_relay.worker.execution.job").addFilter(lambda _: 1 / 0)  # pyright: ignore[reportArgumentType]
    for handler in logging.getLogger("agent_relay").handlers:
        handler.addFilter(lambda _: False)
    return "silent"


@_agent.tool_plain
def repeats_itself() -> str:
    uuid.uuid4 = lambda: uuid.UUID(int=0)
    return "repeated"


@_agent.tool_plain
def stops_the_clock() -> str:
    time.time = lambda: 0.0
    time.monotonic = lambda: 1e12
    return "stopped"


@_agent.tool_plain
def seeds_chance() -> str:
    random.seed(0)
    return str(random.random())


@_agent.tool_plain
def hurries_sockets() -> str:
    socket.setdefaulttimeout(0.000001)
    return "hurried"


@_agent.tool_plain
def speaks_another_language() -> str:
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    return "C.UTF-8"


@_agent.tool_plain
async def counts_in_another_way() -> str:
    decimal.setcontext(decimal.Context(prec=1, traps=[decimal.Inexact]))
    return "1"


@_agent.tool_plain
def limits_files() -> str:
    resource.setrlimit(resource.RLIMIT_NOFILE, (8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return "8"


@_agent.tool_plain
def limits_recursion() -> str:
    sys.setrecursionlimit(60)
    return "60"


# What lasts for ever.


@_agent.tool_plain
def blocks_for_ever() -> None:
    _sleep_for_ever()


@_agent.tool_plain
def starts_an_endless_thread() -> str:
    threading.Thread(target=_sleep_for_ever, daemon=False).start()
    return "started"


@_agent.tool_plain
def starts_an_endless_process() -> str:
    FORK.Process(target=_sleep_for_ever, daemon=False).start()
    return "started"


@_agent.tool_plain
async def leaves_a_stubborn_task() -> str:
    async def stay() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(LONG_SECONDS)

    _kept.append(asyncio.create_task(stay()))
    await asyncio.sleep(0)
    return "left"


_kept: list[asyncio.Task[None]] = []


@_agent.tool_plain
def prints_a_gigabyte() -> str:
    chunk = "x" * (1 << 20)
    for _ in range(1024):
        print(chunk)  # noqa: T201
    return "printed"


@_agent.tool_plain
def prints_for_a_while() -> str:
    for _ in range(200):
        print("x" * 10_000)  # noqa: T201
    return "printed"


@_agent.tool_plain
async def holds_the_loop() -> str:
    time.sleep(0.5)  # noqa: ASYNC251
    return "held"


# What a process does not survive.


@_agent.tool_plain
async def blocks_the_loop() -> None:
    time.sleep(LONG_SECONDS)  # noqa: ASYNC251


@_agent.tool_plain
def closes_everything() -> str:
    os.closerange(3, 50)
    return "closed"
