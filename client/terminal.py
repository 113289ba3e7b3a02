"""What people see while they wait: on standard error, moving if that is a terminal. Standard output is for answers.

Standard error is a courtesy: where it is closed or full, the command goes on. An answer that cannot be written is an
error.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from io import TextIOWrapper
from typing import Any, Self, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

LOG_SECONDS = 10.0
"""Where nothing can move, a line so often."""
FRAMES_A_SECOND = 10
SLOW = 10
"""Below so many a second, a decimal is worth its place."""

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202d\u202e]")
"""Control characters but tab and line feed, and those that turn the direction of all text."""
_ESCAPES = "agent-relay-escapes"


def printable(text: str) -> str:
    """Take out what a terminal would obey."""
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text)


def readable(text: str) -> str:
    """Lay JSON out for people."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return json.dumps(value, indent=2, ensure_ascii=False) if isinstance(value, (dict, list)) else text


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Write characters that an encoding lacks as JSON escapes them."""
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(_ESCAPES, _escaped)


def escape_what_cannot_be_written() -> None:
    """Let no character end the command that an encoding of the standard streams lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_ESCAPES)
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def put(text: str) -> None:
    """Write lines to standard output; a terminal does not obey them.

    Raises:
        OSError: it cannot be written, or nobody reads it (`BrokenPipeError`). Nothing more is written then.
    """
    out = sys.stdout
    try:
        out.write((printable(text) if out.isatty() else text) + "\n")
        out.flush()
    except OSError as error:
        _turn_away(out)
        raise OSError(error.errno, error.strerror, "standard output") from None
    try:
        text.encode(out.encoding)
    except UnicodeEncodeError:
        complain(f"Characters that {out.encoding} lacks are written as \\uXXXX. PYTHONIOENCODING=utf-8 avoids that.")


def complain(text: str, end: str = "\n") -> None:
    """Write lines to standard error, where that is possible."""
    _Courtesy().write(printable(text) + end)


def _turn_away(stream: TextIO) -> None:
    """Let what is still in the buffer of a stream go nowhere: Python would try it again at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Courtesy:
    """Standard error, which nobody need read."""

    def write(self, text: str) -> int:
        if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]  (it is, where it was closed)
            try:
                sys.stderr.write(text)
                sys.stderr.flush()
            except OSError:
                _turn_away(sys.stderr)
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def isatty(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()  # pyright: ignore[reportUnnecessaryComparison]

    @property
    def encoding(self) -> str:
        return getattr(sys.stderr, "encoding", "utf-8")


class Screen:
    """Standard error."""

    def __init__(self) -> None:
        self.console = Console(file=cast("TextIO", _Courtesy()), highlight=False, markup=False, emoji=False)
        self.moves = self.console.is_terminal and not self.console.is_dumb_terminal
        """Whether what is shown can be changed."""

    def tell(self, message: str) -> None:
        """Say something, in a line of its own."""
        self.console.print(Text(printable(message)), soft_wrap=True)

    def mention(self, message: str) -> None:
        """Say what is interesting only to look at."""
        if self.console.is_terminal:
            self.console.print(Text(printable(message), "dim", no_wrap=True, overflow="ellipsis"))


class Scroll(Screen):
    """A text that grows and changes: its end."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.thought: str | None = None
        """What the model thinks before it says more; None where it does not."""
        self._live = Live(
            console=self.console,
            get_renderable=self._end,
            refresh_per_second=FRAMES_A_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        if self.moves:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Leave the terminal to a person who is asked something."""
        self._live.stop()
        try:
            yield
        finally:
            if self.moves:
                self._live.start()

    def clear(self) -> None:
        """Have the text vanish in the end: it will be printed as the answer."""
        self._live.transient = True

    def _end(self) -> Text:
        """Lay out as much as the terminal has room for."""
        width, height = max(self.console.width, 1), max(self.console.height - 2, 1)
        text = Text(printable(readable(self.text))[-width * height :])
        if self.thought is not None:
            thought = f"Thinking… {printable(self.thought)[-width * height :]}".rstrip()
            text = Text("\n" if self.text else "").join([text, Text(thought, "dim")])
        return Text("\n").join(text.wrap(self.console, width)[-height:])


class Bar(Screen):
    """How far a submission is."""

    def __init__(self) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            _Saying(_how_far),
            _Saying(_pace),
            console=self.console,
            expand=True,
            disable=not self.moves,
            redirect_stdout=False,
            redirect_stderr=False,  # `_Courtesy` would write to itself.
        )
        self._task: Task | None = None
        self._logged_at = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def sending(self, chunks: Callable[[Callable[[int], None]], Iterable[bytes]], total: int) -> Iterator[bytes]:
        """Hand through what is sent of so many rows."""
        self._begin("sending", total, 0)
        yield from chunks(self._update)

    def answering(self, total: int, tally: Mapping[str, int]) -> None:
        """Begin to count results; so many there were before."""
        self._begin("answering", total, sum(tally.values()))
        self.ended(tally)

    def ended(self, tally: Mapping[str, int]) -> None:
        """Say how many have ended how."""
        failed = {name: tally[name] for name in ("failed", "cancelled") if tally.get(name)}
        self._update(sum(tally.values()), **failed)

    def running(self, count: int) -> None:
        """Say how many are being answered."""
        if self._task is not None:
            self._update(int(self._task.completed), running=count)

    def _begin(self, what: str, total: int, done: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task.id)
        task_id = self._progress.add_task(what, total=total, completed=done, failed=0, cancelled=0, running=0)
        self._task = next(task for task in self._progress.tasks if task.id == task_id)

    def _update(self, done: int, **counts: Any) -> None:
        if self._task is None:
            return
        self._progress.update(self._task.id, completed=done, **counts)
        now = time.monotonic()
        if self._progress.disable and now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            said = [f"{self._task.description} {_how_far(self._task)}", _pace(self._task)]
            self.tell(", ".join(filter(None, said)))


class _Saying(ProgressColumn):
    """What a function makes of the task."""

    def __init__(self, say: Callable[[Task], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._say = say

    def render(self, task: Task) -> Text:
        return Text(self._say(task))


def _how_far(task: Task) -> str:
    counts = [f"{task.fields[name]:,} {name}" for name in ("failed", "cancelled", "running") if task.fields[name]]
    return ", ".join([f"{task.completed:,.0f} of {task.total or 0:,.0f}", *counts])


def _pace(task: Task) -> str:
    speed, left = task.speed, task.time_remaining
    if not speed or left is None or task.finished:
        return ""
    return f"{speed:,.{int(speed < SLOW)}f}/s, {timedelta(seconds=int(left))} left"
