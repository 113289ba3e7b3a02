"""The spawner: a process with one thread and no event loop, from which worker processes are forked.

They start in a moment, with everything imported that they need. Where a fork is safe, the spawner is forked itself and
shares the memory of its owner. Where it is not, on macOS or once the owner has more than one thread, the spawner is a
new interpreter. Owner and spawner watch each other: where one dies, the other one stops the processes that were made.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Self, cast
from uuid import UUID

log = logging.getLogger(__name__)

Work = Callable[[UUID, UUID | None, Connection], None]
"""Runs a worker process to its end: (worker id, its only run or None, pipe of the process that spawned it)."""

Imports = Callable[[], None]
"""Imports what all processes need; it starts no thread."""

_Wish = tuple[UUID, UUID | None] | list[str] | None
"""A process of an id, and the only run it is for; modules to be imported; or that all stop."""

_FORK = multiprocessing.get_context("fork")
_NEW_INTERPRETER = multiprocessing.get_context("spawn")
_HELD_BACK = {signal.SIGINT, signal.SIGTERM}
"""Signals that go to whole groups of processes: the spawner ends after the processes that it made. These get them even
in the instant in which they are made."""


class SpawnerLost(Exception):
    """The spawner has died: no more processes can be made, and the state of the others is not known."""


class Spawner:
    """The end of the process that wants others."""

    def __init__(
        self, work: Work, above: Connection | None = None, *, imports: Imports | None = None, fresh: bool | None = None
    ) -> None:
        """Start the spawner; `above` is the one that this process was forked from.

        `fresh` starts a new interpreter, to which `work` and `imports` are pickled; by default where a fork is unsafe.
        Imported objects are never garbage, and a collection of them takes a sixth of a second each time; a process that
        collects them also makes a copy of them all.
        """
        if imports is not None:
            imports()
        gc.freeze()
        fresh = not _may_fork() if fresh is None else fresh
        self._end, other_end = _FORK.Pipe()
        ends = other_end, self._end
        if fresh:
            self._process: BaseProcess = _NEW_INTERPRETER.Process(target=_import_and_serve, args=(imports, work, *ends))
        else:
            self._process = _FORK.Process(target=_serve, args=(work, *ends))
        blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)  # The spawner inherits this.
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
        other_end.close()
        self._above = above
        self._lives: dict[UUID, asyncio.Future[int]] = {}
        self._pids: dict[UUID, int] = {}
        self._lost = asyncio.Event()
        self._listening = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, after all that it made have stopped."""
        self._end.close()
        self._process.join()

    @property
    def pid(self) -> int:
        """The process id of the spawner."""
        return cast("int", self._process.pid)

    async def run(self, worker_id: UUID, only: UUID | None = None) -> int:
        """Run work in a process, and wait for its end; returns its exit status, negative of a signal.

        Raises:
            NurseryLost: how it ended, or whether it began, is not known.
        """
        if self._lost.is_set():
            raise SpawnerLost
        self._listen()
        life = self._lives[worker_id] = asyncio.get_running_loop().create_future()
        self._say((worker_id, only))
        try:
            return await life
        finally:
            self._lives.pop(worker_id, None)
            self._pids.pop(worker_id, None)

    def prepare(self, modules: Iterable[str]) -> None:
        """Import modules there, and in the spawner above, so that processes made from now on need not do it."""
        names = list(modules)
        self._say(names)
        if self._above is not None:
            with suppress(OSError):
                self._above.send(names)

    def stop(self) -> None:
        """Tell all processes to stop, also those that are only being made."""
        self._say(None)

    async def lost(self) -> None:
        """Wait for ever, or until it has died."""
        self._listen()
        await self._lost.wait()

    def _say(self, what: _Wish) -> None:
        try:
            self._end.send(what)
        except OSError:
            self._lose()

    def _listen(self) -> None:
        if not self._listening:
            self._listening = True
            asyncio.get_running_loop().add_reader(self._end.fileno(), self._hear)

    def _hear(self) -> None:
        """Hear that a process was made, or how one has ended."""
        try:
            worker_id, pid, status = cast("tuple[UUID, int, int | None]", self._end.recv())
        except (EOFError, OSError):
            self._lose()
            return
        if (life := self._lives.get(worker_id)) is None:
            return
        self._pids[worker_id] = pid
        if status is not None and not life.done():
            life.set_result(status)

    def _lose(self) -> None:
        """Do in its place what can be done."""
        if self._lost.is_set():
            return
        self._lost.set()
        log.critical("nursery.lost processes=%d", len(self._pids))
        asyncio.get_running_loop().remove_reader(self._end.fileno())
        for pid in self._pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for life in self._lives.values():
            if not life.done():
                life.set_exception(SpawnerLost())


def _may_fork() -> bool:
    """Tell whether a fork of this process is safe: not on macOS, because of its libraries, and not beside threads."""
    return sys.platform == "linux" and len([*Path("/proc/self/task").iterdir()]) == 1


def _import_and_serve(imports: Imports | None, work: Work, end: Connection, other_end: Connection) -> None:
    """Serve in a new interpreter."""
    if imports is not None:
        imports()
    gc.freeze()
    _serve(work, end, other_end)


def _serve(work: Work, end: Connection, other_end: Connection) -> None:
    """Fork, and report the ends, until the other end is closed; then stop all."""
    other_end.close()
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, _wake)
    told, telling = _FORK.Pipe(duplex=False)
    children: dict[UUID, BaseProcess] = {}
    stopping = ended = False
    while children or not ended:
        for ready in wait([woken, told] if ended else [woken, told, end]):
            if ready == woken:
                os.read(woken, 4096)
                _tell_the_ended(children, end)
                continue
            if ready == told:
                _import(told.recv())
                continue
            try:
                wanted = cast("_Wish", end.recv())
            except (EOFError, OSError):
                ended = True
                wanted = None
            if isinstance(wanted, list):
                _import(wanted)
            elif wanted is not None:
                worker_id, only = wanted
                child = children[worker_id] = _FORK.Process(target=_child, args=(work, end, telling, worker_id, only))
                child.start()
                _tell(end, worker_id, child)
            stopping |= wanted is None
            if stopping:
                for child in children.values():
                    child.terminate()


def _import(modules: list[str]) -> None:
    for module in modules:
        with suppress(Exception):  # A process that needs it reports the error.
            importlib.import_module(module)
    gc.freeze()


def _child(work: Work, end: Connection, telling: Connection, worker_id: UUID, only: UUID | None) -> None:
    """Work as a process does that was started otherwise."""
    end.close()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
    work(worker_id, only, telling)


def _tell_the_ended(children: dict[UUID, BaseProcess], end: Connection) -> None:
    for worker_id, child in list(children.items()):
        if child.exitcode is not None:
            del children[worker_id]
            _tell(end, worker_id, child)


def _tell(end: Connection, worker_id: UUID, child: BaseProcess) -> None:
    with suppress(OSError):  # The other end is closed.
        end.send((worker_id, child.pid, child.exitcode))


def _wake(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: with a handler of its own, the signal is written into the pipe."""
