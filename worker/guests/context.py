"""Distinguish the code of a run from the code of the worker, and refuse it changes of the whole process.

The code of a run (an agent, its tools, its factory of dependencies) runs in a context of its own: its tasks, callbacks
and threads inherit it. Code that has left the context nevertheless can change anything; `guard` restores it.
"""

from __future__ import annotations

import asyncio
import builtins
import json
import logging
import os
import resource
import sys
import threading
import time
import uuid
from asyncio import events, futures, locks, queues, tasks, timeouts
from collections.abc import Callable
from concurrent.futures import thread as pool
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

import uvloop

GUEST: ContextVar[object | None] = ContextVar("guest", default=None)
"""The run whose code is running; None in the worker's own code."""
SHARED_MODULES: tuple[ModuleType, ...] = (
    asyncio,
    events,
    futures,
    locks,
    queues,
    tasks,
    timeouts,
    builtins,
    json,
    time,
    uuid,
)
"""Modules whose functions and classes all code here and in pydantic-ai uses, and that some code replaces."""
_ONLY_OF_THE_LOG = frozenset({"slow_callback_duration"})


@dataclass(frozen=True, slots=True)
class EnteredFor:
    """Stands in `GUEST` for objects that an agent has open for all of its runs, such as sessions and their tasks.

    A session takes over the context of its sender: its tasks are partly of the agent and partly of its runs, and may
    cancel each other.
    """

    agent_type: str


def guest_context(run: object) -> Context:
    """Make the context for the code of a run."""
    context = copy_context()
    context.run(GUEST.set, run)
    return context


def public(module: ModuleType) -> dict[str, Any]:
    """Return the public names of a module."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


class Task(asyncio.Task[Any]):
    """A task that knows its run: no other run can cancel it while its own lasts."""

    def __init__(self, coro: Any, run: object | None, first: Task | None, **options: Any) -> None:
        self.run = run
        """None of a task of the worker's own."""
        self._first = first
        """The task that the worker has made for the run, and that ends with it; None where it is this one."""
        super().__init__(coro, **options)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the task, unless the code of another run asks."""
        guest = GUEST.get()
        is_shared = isinstance(guest, EnteredFor) or isinstance(self.run, EnteredFor)
        if guest not in {None, self.run} and not is_shared and not (self._first or self).done():
            _refuse("cancel the tasks")
        return super().cancel(msg)


class Loop(uvloop.Loop):
    """The event loop of a worker: it knows the run of each task, and a run cannot take it from the others."""

    ends = False
    _firsts: WeakValueDictionary[object, Task]

    def __init__(self) -> None:
        super().__init__()
        self._firsts = WeakValueDictionary()

    def create_task(self, coro: Any, *, context: Context | None = None, **options: Any) -> asyncio.Task[Any]:
        """Make a task, which notes the run that it is of."""
        run = GUEST.get() if context is None else context.get(GUEST)
        if run is None:
            return Task(coro, None, None, loop=self, context=context, **options)
        first = self._firsts.get(run)
        if first is not None and not first.done():
            return Task(coro, run, first, loop=self, context=context, **options)
        self._firsts[run] = task = Task(coro, run, None, loop=self, context=context, **options)
        return task

    def is_of(self, task: asyncio.Future[Any], run: object) -> bool:
        """Tell whether a task is of that run."""
        return isinstance(task, Task) and task.run == run

    def set_task_factory(self, factory: Any) -> None:
        """Change how tasks are made, of the worker's own code only."""
        _refuse("change how the event loop makes tasks")
        super().set_task_factory(factory)

    def set_default_executor(self, executor: Any) -> None:
        """Change the threads, of the worker's own code only."""
        _refuse("replace the threads")
        super().set_default_executor(executor)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Let the threads go once the worker has ended."""
        if not self.ends:
            _refuse("shut down the threads")
        await super().shutdown_default_executor(timeout)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _ONLY_OF_THE_LOG:
            _refuse(f"replace {name} of the event loop")
        super().__setattr__(name, value)


class _Shared(ModuleType):
    """A module in which the code of a run replaces nothing."""

    def __setattr__(self, name: str, value: Any) -> None:
        self._check(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._check(name)
        super().__delattr__(name)

    def _check(self, name: str) -> None:
        if name in vars(self) and not name.startswith("_"):
            _refuse(f"replace {self.__name__}.{name}")


def _give_threads_their_context() -> None:
    """Run a thread in the context of the code that starts it, as Python 3.14 can; threads of pools serve everybody."""
    start, of_a_pool = threading.Thread.start, vars(pool)["_worker"]

    @wraps(start)
    def start_in_context(thread: threading.Thread) -> None:
        is_plain = type(thread) in {threading.Thread, threading.Timer} and vars(thread).get("_target") is not of_a_pool
        if is_plain and GUEST.get() is not None:
            run, context = thread.run, copy_context()
            thread.run = lambda: context.run(run)
        start(thread)

    threading.Thread.start = start_in_context  # pyright: ignore[reportAttributeAccessIssue]


def refuse_changes(worker_pid: int) -> None:
    """From now on, refuse the code of runs in this process what would change it for all runs.

    Refused are: names in `SHARED_MODULES`, the factory of log records and lower limits. `asyncio.all_tasks()` gives a
    run its own tasks only, and a recursion limit below the worker's own is not taken.
    """
    for module in SHARED_MODULES:
        module.__class__ = _Shared
    _give_threads_their_context()
    lowest, set_recursion_limit = sys.getrecursionlimit(), sys.setrecursionlimit
    set_record_factory, set_limit, change_limit = logging.setLogRecordFactory, resource.setrlimit, resource.prlimit

    def in_a_run() -> bool:
        return GUEST.get() is not None and os.getpid() == worker_pid

    @wraps(set_recursion_limit)
    def setrecursionlimit(limit: int, /) -> None:
        set_recursion_limit(max(limit, lowest) if in_a_run() else limit)

    @wraps(set_record_factory)
    def setLogRecordFactory(factory: Any) -> None:  # noqa: N802  (logging's name)
        _refuse("replace the factory of log records")
        set_record_factory(factory)

    @wraps(set_limit)
    def setrlimit(limit: int, limits: Any, /) -> None:
        if in_a_run():
            _refuse_lower(limit, limits)
        set_limit(limit, limits)

    @wraps(change_limit)
    def prlimit(pid: int, limit: int, *limits: Any) -> Any:
        if limits and in_a_run() and pid in {0, worker_pid}:
            _refuse_lower(limit, limits[0])
        return change_limit(pid, limit, *limits)

    sys.setrecursionlimit = setrecursionlimit
    logging.setLogRecordFactory = setLogRecordFactory
    resource.setrlimit, resource.prlimit = setrlimit, prlimit
    asyncio.all_tasks = tasks.all_tasks = _own_tasks(tasks.all_tasks)


def _own_tasks(all_tasks: Callable[..., set[asyncio.Task[Any]]]) -> Callable[..., set[asyncio.Task[Any]]]:
    @wraps(all_tasks)
    def own_tasks(loop: asyncio.AbstractEventLoop | None = None) -> set[asyncio.Task[Any]]:
        found = all_tasks(loop)
        run, loop = GUEST.get(), loop or events.get_running_loop()
        return {task for task in found if loop.is_of(task, run)} if run and isinstance(loop, Loop) else found

    return own_tasks


def _refuse_lower(limit: int, limits: Any) -> None:
    """Refuse a lower limit: without files or memory, the other runs end too."""
    wanted, now = tuple(limits), resource.getrlimit(limit)
    if any(not reaches(new, old) for new, old in zip(wanted, now, strict=False)) and limit != resource.RLIMIT_CORE:
        _refuse("lower the limits")


def reaches(limit: int, other: int) -> bool:
    """Tell whether a limit of resources is as high as another."""
    return limit == resource.RLIM_INFINITY or (other != resource.RLIM_INFINITY and limit >= other)


def _refuse(what: str) -> None:
    if GUEST.get() is not None:
        raise PermissionError(f"An agent may not {what} of the worker process that runs it.")
