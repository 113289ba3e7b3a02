"""`python -m tests.attacks.watched_api FILES STALLS [STACKS]`: serve the API, and measure how long its loop is held.

The process may open FILES files. STALLS is a file of two doubles, in seconds, of the turns of the loop since a reader
has set them to zero: the most time of the processor that this process used in one turn, and the longest turn. The
first is the measure: other processes on the machine lengthen the second only. In both, threads of this process count
while the loop waits for them.

STACKS is a file for the stacks of the main thread, sampled while a turn is long: what to repair.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import resource
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

TICK_SECONDS = 0.005
SAMPLE_SECONDS = 0.004
LONG_SECONDS = 0.05
"""A turn whose stacks are written."""
FRAMES = 24
STALLS = struct.Struct("dd")


class _Watch:
    """The turns of a loop."""

    def __init__(self, stalls: mmap.mmap, stacks: Path | None) -> None:
        self._stalls = stalls
        self._stacks = stacks
        self._seen: list[str] = []
        self._collecting_since = 0.0

    async def run(self) -> None:
        if self._stacks is not None:
            gc.callbacks.append(self._note_collection)
            threading.Thread(target=self._sample, args=[threading.get_ident()], daemon=True).start()
        while True:
            began, used = time.monotonic(), time.process_time()
            self._seen = []
            await asyncio.sleep(TICK_SECONDS)
            wall = time.monotonic() - began - TICK_SECONDS
            held = min(wall, time.process_time() - used)
            worst = STALLS.unpack_from(self._stalls)
            STALLS.pack_into(self._stalls, 0, max(worst[0], held), max(worst[1], wall))
            if self._stacks is not None and held > LONG_SECONDS:
                with self._stacks.open("a") as file:
                    file.write(f"--- {held * 1000:.0f} ms of {wall * 1000:.0f}\n")
                    file.writelines(f"{times} x\n{stack}" for stack, times in Counter(self._seen).most_common(5))

    def _note_collection(self, phase: str, about: dict[str, int]) -> None:
        """Note how long a collection of garbage took: no stack is sampled meanwhile."""
        if phase == "start":
            self._collecting_since = time.monotonic()
        else:
            taken = time.monotonic() - self._collecting_since
            self._seen.append(f"  collection of generation {about['generation']}: {taken * 1000:.0f} ms\n")

    def _sample(self, thread: int) -> None:
        while True:
            time.sleep(SAMPLE_SECONDS)
            frame = sys._current_frames()[thread]  # pyright: ignore[reportPrivateUsage]
            self._seen.append("".join(traceback.format_list(traceback.extract_stack(frame)[-FRAMES:])))


def main(files: int, stalls: Path, stacks: Path | None = None) -> None:
    """Serve until told to stop."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    from agent_relay.api import __main__ as api  # noqa: PLC0415  (the limit holds from the beginning)

    with ExitStack() as stack:
        memory = stack.enter_context(mmap.mmap(stack.enter_context(stalls.open("r+b")).fileno(), STALLS.size))
        watching: list[asyncio.Task[None]] = []
        startup = api.Server.startup

        async def watched(server: api.Server, sockets: object = None) -> None:
            await startup(server, sockets)  # pyright: ignore[reportArgumentType]
            watching.append(asyncio.create_task(_Watch(memory, stacks).run()))

        api.Server.startup = watched  # pyright: ignore[reportAttributeAccessIssue]
        api.main([])


if __name__ == "__main__":
    main(int(sys.argv[1]), *(Path(word) for word in sys.argv[2:]))
