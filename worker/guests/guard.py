"""An agent's code that harms its process ends its own run, and not the process or the runs of others.

The event loop is started again after it was stopped. Synchronous tools have threads without limit, so that tools that
never return leave threads to the others. Children that a tool forks neither answer our signals nor run our code.
Settings of the whole process (signal handlers, log, limits, standard streams) are restored about a second after a tool
changed them, and the log names the runs that were in flight. At the end, threads that do not end are not waited for.
"""

from __future__ import annotations

import _thread
import asyncio
import faulthandler
import gc
import importlib
import logging
import os
import resource
import signal
import socket
import stat
import sys
import threading
import traceback
import warnings
from asyncio import events
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial, wraps
from multiprocessing import active_children
from types import FrameType
from typing import Any, ParamSpec, Self, TypeVar, cast

from pydantic_ai import Agent

from agent_relay.shared import logs
from agent_relay.worker.guests.context import SHARED_MODULES, Loop, public, reaches, refuse_changes

log = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

LOOK_SECONDS = 1.0
"""Time between two looks at what belongs to the whole process."""
EXIT_SECONDS = 3.0
"""Time that the threads, children and exit handlers of agents have to end, once the worker has."""
EXIT_STATUS = os.EX_SOFTWARE
MOST_THREADS = 10_000
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
DEADLY_SIGNALS = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Signals that a tool can have sent, with a timer or a limit, and that end a process without a handler."""
LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_AS, resource.RLIMIT_STACK)
STANDARD_STREAMS = (0, 1, 2)
TIMERS = {
    signal.SIGALRM: signal.ITIMER_REAL,
    signal.SIGVTALRM: signal.ITIMER_VIRTUAL,
    signal.SIGPROF: signal.ITIMER_PROF,
}
"""The timers that send these signals."""
HOOKS = ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook"))
POLICY = "_event_loop_policy"
"""Where `asyncio.events` keeps the policy; to ask for it is deprecated, and makes one where there is none."""
SHARED_VARIABLES = b"PG"
"""How the names of the environment variables begin that libpq reads as it connects."""

_handler_of: Callable[[int], Any] = importlib.import_module("_signal").getsignal
"""`signal.getsignal` makes an enum of a number first, which takes longer than all else here."""
_SIGNAL_SENDERS = (
    (os, "kill"),
    (os, "killpg"),
    (signal, "raise_signal"),
    (signal, "pthread_kill"),
    (_thread, "interrupt_main"),
)


class ToolThreads(ThreadPoolExecutor):
    """Threads for synchronous tools: an idle one is used again, and where none is idle there is one more."""

    def __init__(self) -> None:
        super().__init__(MOST_THREADS, thread_name_prefix="tool")

    def submit(
        self, fn: Callable[Parameters, Result], /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Future[Result]:
        """Call a function in a thread; a child that it forks ends where the function does."""
        return super().submit(_in_this_process, partial(fn, *args, **kwargs))


def _in_this_process(call: Callable[[], Result]) -> Result:
    pid = os.getpid()
    try:
        return call()
    except StopIteration as error:  # A future cannot hold it: its waiter would wait for ever.
        raise RuntimeError("A synchronous tool raised StopIteration.") from error
    finally:
        if os.getpid() != pid:
            _end_forked_child(sys.exc_info()[1])


def _end_forked_child(error: BaseException | None) -> None:
    """End a child as if it had come to the end of its program."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    os._exit(status)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` in an event loop of its own until it has ended, also if other code stops the loop.

    A task or a callback that raises SystemExit or KeyboardInterrupt stops a loop, as `loop.stop()` does. Here the loop
    goes on: the waiter for that task gets the exception.
    """
    pid = os.getpid()
    loop = Loop()
    runner = asyncio.Runner(loop_factory=lambda: loop)
    runner.get_loop()
    threads = ToolThreads()
    loop.set_default_executor(threads)
    _Forks(
        pid,
        dict.fromkeys((*STOP_SIGNALS, *DEADLY_SIGNALS), signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler},
    )
    _refuse_signals_to_ourselves(pid)
    refuse_changes(pid)
    setattr(asyncio, "_nest_patched", True)  # noqa: B010  `nest_asyncio` cannot patch this loop, and would patch all else before.
    if stream := logs.stream():
        faulthandler.enable(stream)
    with Agent.using_thread_executor(threads):
        task = loop.create_task(main)
    reported: BaseException | None = None
    while not task.done():
        try:
            loop.run_until_complete(task)
        except BaseException as stopped:  # noqa: BLE001  (an agent's)
            if os.getpid() != pid:
                _end_forked_child(stopped)
            if not task.done() and stopped is not reported:
                reported = stopped
                place = where(*(frame for frame, _ in traceback.walk_tb(stopped.__traceback__)))
                log.error("process_guard.loop_stopped error=%r at=%s", stopped, place)  # noqa: TRY400  (its run logs more)
    _exit_soon(task)
    loop.ends = True
    try:
        runner.close()
    except BaseException as error:  # noqa: BLE001  (a task of an agent that is cancelled may raise anything)
        log.warning("process_guard.left_task error=%r", error)
    task.result()


def _exit_soon(task: asyncio.Task[None]) -> None:
    """End the process in time, although a thread, a child process or an exit handler of an agent may not end."""
    status = 0 if not task.cancelled() and task.exception() is None else 1

    def end() -> None:
        ours = {threading.main_thread(), threading.current_thread()}
        left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread not in ours]
        children = [child.pid for child in active_children()]
        log.warning("process_guard.left_behind threads=%s children=%s", ",".join(left), children)
        os._exit(status)

    timer = threading.Timer(EXIT_SECONDS, end)
    timer.daemon = True
    timer.start()


def end_process(reason: str, in_flight: str) -> None:
    """End a broken process; the log has the line of its main thread, and the run that it works for."""
    log.critical("%s at=%s in_flight=%s", reason, where(*frames_of(threading.main_thread().ident)), in_flight)
    os._exit(EXIT_STATUS)


def where(*frames: FrameType) -> str:
    """Say the last line, of frames from the outermost to the innermost, that is in no installed package."""
    own = [frame for frame in frames if not frame.f_code.co_filename.startswith((sys.base_prefix, sys.prefix, "<"))]
    found = (own or frames)[-1:]
    return f"{found[0].f_code.co_filename}:{found[0].f_lineno}" if found else "?"


def frames_of(thread_id: int | None) -> list[FrameType]:
    """Return the frames of a thread, from the outermost to the innermost."""
    frame = sys._current_frames().get(thread_id or 0)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return [frame for frame, _ in traceback.walk_stack(frame)][::-1] if frame else []


# Children that an agent forks.


class _Forks(threading.local):
    """Sees to children that this process forks, from now on.

    They get the signal handlers of any Python process: also a signal that comes at once, which waits for that.
    Children of `multiprocessing` end by themselves. One that is forked otherwise, on the thread of the loop, has our
    tasks and connections: it ends when the agent's code returns to the loop, or waits for it.
    """

    def __init__(self, worker_pid: int, handlers: dict[signal.Signals, Any]) -> None:
        self._worker_pid = worker_pid
        self._handlers = handlers
        self._forking_pid = 0
        self._mask = set[Any]()
        if threading.current_thread() is threading.main_thread():  # A thread-local is made anew in each thread.
            os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def _before(self) -> None:
        self._forking_pid = os.getpid()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)

    def _in_parent(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _in_child(self) -> None:
        if self._forking_pid == self._worker_pid:  # Else it is a child of a child.
            signal.set_wakeup_fd(-1)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if self._forking_pid == self._worker_pid:
            _keep_from_the_loop(sys._getframe(1))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _keep_from_the_loop(frame: FrameType | None) -> None:
    root = frame
    while frame is not None and frame.f_code is not run.__code__:
        if frame.f_globals.get("__name__") == "multiprocessing.popen_fork":
            return
        root, frame = frame, frame.f_back
    if frame is not None and root is not None:
        root.f_trace, root.f_trace_lines = _EndingTrace(), False
        sys.settrace(_trace_nothing)


def _trace_nothing(_frame: FrameType, _event: str, _argument: Any) -> None:
    """Trace no function but the one that has a trace of its own."""


class _EndingTrace:
    """Ends a forked child as the outermost function of ours returns to the loop, or waits for it."""

    def __init__(self) -> None:
        self._raised: BaseException | None = None

    def __call__(self, _frame: FrameType, event: str, argument: Any) -> Self:
        if event == "exception":
            self._raised = argument[1]
        elif event == "return":
            _end_forked_child(self._raised if argument is None else None)
        return self


def _refuse_signals_to_ourselves(worker_pid: int) -> None:
    """Raise an error in a tool that sends its process a stop signal: a signal does not carry its sender."""

    def refusing(send: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(send)
        def guarded(*arguments: Any) -> Any:
            number = arguments[-1] if arguments else signal.SIGINT
            to = {"kill": lambda: arguments[0], "killpg": lambda: -arguments[0]}.get(send.__name__, os.getpid)()
            if number in STOP_SIGNALS and to in {worker_pid, 0, -1, -os.getpgrp()}:
                name = signal.Signals(number).name
                raise PermissionError(f"An agent may not send {name} to the worker process that runs it.")
            return send(*arguments)

        return guarded

    for module, name in _SIGNAL_SENDERS:
        setattr(module, name, refusing(getattr(module, name)))


# State of the whole process.


class ProcessGuard:
    """Restores the state of the process that an agent's code changes, if `context.py` could not refuse the change."""

    def __init__(self, stop: Callable[[], None], in_flight: Callable[[], str]) -> None:
        """Store the state; made once all agents are imported, because changes of their import may stay.

        Args:
            stop: called in the loop when the process receives a stop signal.
            in_flight: names the runs in flight and their agents.
        """
        self._loop: Any = asyncio.get_running_loop()
        self._stop = stop
        self._in_flight = in_flight
        self._limits = {limit: resource.getrlimit(limit)[0] for limit in LIMITS}
        self._streams = {number: _identity(number) for number in STANDARD_STREAMS}
        self._recursion_limit = sys.getrecursionlimit()
        self._warnings = [entry for entry in warnings.filters if entry[0] == "error"]
        self._modules = [(module, public(module)) for module in SHARED_MODULES]
        self._variables = _shared_variables()
        self._collects = gc.isenabled()
        self._timeout = socket.getdefaulttimeout()
        self._record_factory = logging.getLogRecordFactory()
        self._hooks = [(module, name, getattr(module, name)) for module, name in HOOKS]
        self._trace, self._profile = sys.gettrace(), sys.getprofile()
        self._policy: Any = vars(events)[POLICY]
        self._lines_of_the_loop = self._loop.slow_callback_duration
        self._put_back_handlers()
        logs.put_back()
        self._looks: tuple[tuple[Callable[[], bool], str], ...] = (
            (self._put_back_interpreter, "settings of the interpreter"),  # The log needs its factory of records.
            (logs.put_back, "the log"),
            (self._put_back_handlers, "signal handlers"),
            (self._put_back_streams, "standard streams"),
            (self._put_back_limits, "resource limits"),
            (self._put_back_warnings, "warnings as errors"),
            (self._put_back_modules, "shared modules"),
            (self._put_back_loop, "settings of the event loop"),
            (self._put_back_variables, "environment variables of libpq"),
        )

    async def watch(self) -> None:
        """Look for ever; a thread or a task may change something at any time."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Restore changed state; called at the end of each run, too, so that it does not affect the next.

        Without changes it takes some ten microseconds.
        """
        for put_back, what in self._looks:
            try:
                changed = put_back()
            except Exception:
                log.exception("process_guard.not_put_back what=%r in_flight=%s", what, self._in_flight())
                continue
            if changed:
                log.error("process_guard.put_back what=%r in_flight=%s", what, self._in_flight())

    def _put_back_handlers(self) -> bool:
        changed = False
        for numbers, ours in ((STOP_SIGNALS, self._on_stop_signal), (DEADLY_SIGNALS, self._on_deadly_signal)):
            for number in numbers:
                current = _handler_of(number)
                if current == ours or (number in DEADLY_SIGNALS and callable(current)):
                    continue
                signal.signal(number, ours)
                changed = True
        return changed

    def _on_stop_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop)

    def _on_deadly_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in TIMERS:
            signal.setitimer(TIMERS[signal.Signals(number)], 0)  # It might come a thousand times a second.
        log.error("process_guard.signal signal=%s in_flight=%s", signal.Signals(number).name, self._in_flight())

    def _put_back_streams(self) -> bool:
        """Open closed descriptors on the null device: else the next connection gets their number, and printed text."""
        changed = [number for number, before in self._streams.items() if before and _is_lost(number, before)]
        for number in changed:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        return bool(changed)

    def _put_back_limits(self) -> bool:
        changed = False
        for limit, before in self._limits.items():
            soft, hard = resource.getrlimit(limit)
            wanted = before if reaches(hard, before) else hard
            if not reaches(soft, wanted):
                resource.setrlimit(limit, (wanted, hard))
                changed = True
        return changed

    def _put_back_interpreter(self) -> bool:
        changed = False
        if sys.getrecursionlimit() < self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
            changed = True
        if self._collects and not gc.isenabled():
            gc.enable()
            changed = True
        if socket.getdefaulttimeout() != self._timeout:
            socket.setdefaulttimeout(self._timeout)
            changed = True
        if logging.getLogRecordFactory() is not self._record_factory:
            logging.setLogRecordFactory(self._record_factory)
            changed = True
        if sys.gettrace() is not self._trace:
            sys.settrace(self._trace)
            changed = True
        if sys.getprofile() is not self._profile:
            sys.setprofile(self._profile)
            changed = True
        for module, name, ours in self._hooks:
            if getattr(module, name, None) is not ours:
                setattr(module, name, ours)
                changed = True
        return changed

    def _put_back_warnings(self) -> bool:
        kept = [entry for entry in warnings.filters if entry[0] != "error" or entry in self._warnings]
        changed = len(kept) < len(warnings.filters)
        if changed:
            warnings.resetwarnings()
            cast("list[Any]", warnings.filters)[:] = kept
        return changed

    def _put_back_modules(self) -> bool:
        changed = False
        for module, before in self._modules:
            now = vars(module)
            if before.items() <= now.items():
                continue
            now.update(before)
            changed = True
        if vars(events)[POLICY] is not self._policy:
            setattr(events, POLICY, self._policy)
            changed = True
        return changed

    def _put_back_loop(self) -> bool:
        changed = False
        if self._loop.get_exception_handler() is not None:
            self._loop.set_exception_handler(None)
            changed = True
        if self._loop.get_debug():
            self._loop.set_debug(False)
            changed = True
        if self._loop.slow_callback_duration != self._lines_of_the_loop:
            self._loop.slow_callback_duration = self._lines_of_the_loop
            changed = True
        return changed

    def _put_back_variables(self) -> bool:
        now = _shared_variables()
        if now == self._variables:
            return False
        for name in now.keys() - self._variables.keys():
            del os.environ[name]
        os.environ.update(self._variables)
        return True


def _shared_variables() -> dict[str, str]:
    held: dict[bytes, bytes] = cast("Any", os.environ)._data  # noqa: SLF001  (`os.environ` decodes every name)
    return {os.fsdecode(name): os.fsdecode(held[name]) for name in held if name.startswith(SHARED_VARIABLES)}


def _identity(number: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_lost(number: int, before: tuple[int, int]) -> bool:
    """Tell whether a stream was closed; its number may be a connection's by now."""
    now = _identity(number)
    return now is None or (now != before and stat.S_IFMT(os.fstat(number).st_mode) in {0, stat.S_IFSOCK})
