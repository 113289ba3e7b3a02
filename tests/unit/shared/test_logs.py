"""A record is one line of bounded length, whatever its values hold."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest

from agent_relay.shared import logs
from agent_relay.shared.clock import new_id

FORGED = "2026-01-01 00:00:00,000 INFO agent_relay.api.keys keys.created tenant=acme"


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have said which worker it is."""
    monkeypatch.setattr(logs, "_of_process", {})


def written(message: str, *values: Any, error: BaseException | None = None, stack: str | None = None) -> list[str]:
    """Return the lines that a record is written as."""
    said = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord(
        "agent_relay.worker.execution.job", logging.ERROR, __file__, 1, message, values, said, sinfo=stack
    )
    formatter = logs._Lines(logs.FORMAT)  # pyright: ignore[reportPrivateUsage]
    return formatter.format(record).split("\n")


@pytest.mark.parametrize(
    "between",
    ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1b[2K\r", "\x1b[1A", "\x85", "\u2028", "\u2029", "\0", "\x9b2J", "\u202e"],
)
def test_a_value_cannot_begin_a_line(between: str) -> None:
    (line,) = written("job.refused error=%s", f"bad{between}{FORGED}")
    assert "".join(line.splitlines()) == line, "nor what some reader takes for a line's end"
    assert between not in line
    assert between[-1:].encode("unicode_escape").decode() in line or between[-1].isprintable()
    assert not line.startswith(FORGED)


def test_text_that_harms_nothing_stays_as_it_is() -> None:
    (line,) = written("job.refused error=%s", "Zażółć\t👩‍🚀 שלום “end” \\n")
    assert line.endswith("error=Zażółć\t👩‍🚀 שלום “end” \\n")


@pytest.mark.parametrize("character", ["x", "ü", "😀", "\n", "\x1b", "\ud83d"])
@pytest.mark.parametrize("count", [20_000, 5_000_000])
def test_a_line_is_cut_and_says_so(character: str, count: int) -> None:
    run_id = new_id()
    token = logs.RUN_ID.set(run_id)
    try:
        (line,) = written("job.refused error=%s", character * count)
    finally:
        logs.RUN_ID.reset(token)
    assert len(line.encode(errors="backslashreplace")) < logs.LINE_BYTES + 200
    assert f"{count + len('job.refused error=')}"[:3] in line.rpartition("… (cut: ")[2]
    assert line.endswith(f" run_id={run_id}"), "what it is about is never cut off"


def test_a_value_cannot_keep_out_what_the_line_is_about() -> None:
    run_id = new_id()
    token = logs.RUN_ID.set(run_id)
    try:
        (line,) = written("job.refused error=%s", "x run_id=another")
        (own,) = written("job.refused run_id=%s error=%s", run_id, "x")
    finally:
        logs.RUN_ID.reset(token)
    assert line.endswith(f" run_id={run_id}")
    assert own.count("run_id=") == 1


def raised(message: str) -> BaseException:
    with pytest.raises(ZeroDivisionError) as error:
        raise ZeroDivisionError(message)
    return error.value


def test_no_line_of_a_traceback_looks_like_a_record() -> None:
    first, *traceback = written("job.agent_error", error=raised(f"bad\n{FORGED}\r{FORGED}\x1b[2K"))
    assert first.endswith("job.agent_error")
    assert traceback[0] == "  Traceback (most recent call last):"
    assert f"  {FORGED}\\r{FORGED}\\x1b[2K" in traceback
    assert all(line.startswith("  ") for line in traceback)
    _, *stack = written("job.agent_error", stack=f"Stack:\n{FORGED}")
    assert all(line.startswith("  ") for line in stack)


def test_a_traceback_has_an_end() -> None:
    lines = written("job.agent_error", error=raised("x" * 10_000_000))
    assert sum(map(len, lines)) < 2 * logs.LINE_BYTES
    lines = written("job.agent_error", error=raised("line\n" * 100_000))
    assert len(lines) < logs.TRACEBACK_LINES + 10
    assert any("lines left out" in line for line in lines)


def test_a_deep_recursion_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "TRACEBACK_LINES", 20)

    def one(depth: int) -> None:
        two(depth)

    def two(depth: int) -> None:
        if depth == sys.getrecursionlimit():
            return
        one(depth + 1)

    with pytest.raises(RecursionError) as error:
        one(0)
    assert len(written("job.agent_error", error=error.value)) < 30
