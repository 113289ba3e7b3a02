"""What is done while a server is away: a step is skipped, or repeated; what is wrong with a step is not hidden."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import redis.exceptions
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from agent_relay.shared.away import (
    Skip,
    repeat_while_away,
    skip_if_database_away,
    skip_if_failed,
    skip_if_redis_away,
)
from agent_relay.shared.metrics import REGISTRY

log = logging.getLogger("agent_relay.tests")

UNREACHABLE = DBAPIError("SELECT 1", {}, OSError("refused"))
MISTAKE = ProgrammingError("SELEC 1", {}, ValueError("syntax"))


def skip_redis() -> Skip:
    """Skip where Redis is away."""
    return skip_if_redis_away(log, "part.redis_away run_id=%s", 7)


def skip_database() -> Skip:
    """Skip where PostgreSQL is away."""
    return skip_if_database_away(log, "part.database_away run_id=%s", 7)


@pytest.mark.parametrize(
    ("skip", "error"),
    [
        (skip_redis, redis.exceptions.ConnectionError("gone")),
        (skip_redis, redis.exceptions.ReadOnlyError("READONLY")),
        (skip_redis, ConnectionResetError(104, "reset")),
        (skip_database, UNREACHABLE),
        (skip_database, PoolTimeout("no connection")),
        (skip_database, ConnectionRefusedError(111, "refused")),
    ],
)
def test_a_step_that_can_wait_is_skipped_and_said(
    caplog: pytest.LogCaptureFixture, skip: Callable[[], Skip], error: Exception
) -> None:
    with skip() as skipped:
        raise error
    assert skipped.error is error
    [line] = caplog.messages
    assert line.endswith(f"_away run_id=7 error={error!r}")


@pytest.mark.parametrize("skip", [skip_redis, skip_database])
@pytest.mark.parametrize("error", [KeyError("a bug"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_what_no_server_raised_is_not_skipped(skip: Callable[[], Skip], error: BaseException) -> None:
    with pytest.raises(type(error)), skip():
        raise error


@pytest.mark.parametrize(
    ("skip", "error"), [(skip_redis, UNREACHABLE), (skip_database, redis.exceptions.ConnectionError("gone"))]
)
def test_one_server_away_is_not_taken_for_the_other(skip: Callable[[], Skip], error: Exception) -> None:
    with pytest.raises(type(error)), skip():
        raise error


def test_a_step_that_is_made_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with skip_redis() as skipped:
        pass
    assert skipped.error is None
    assert caplog.messages == []


def test_a_failed_step_of_a_loop_is_counted_and_the_loop_goes_on() -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("agent_relay_failed_steps_total", {"step": "part.step"}) or 0

    before = count()
    with skip_if_failed("part", "step"), skip_database():
        raise ZeroDivisionError
    with skip_if_failed("part", "step"), skip_database():
        raise UNREACHABLE
    assert count() == before + 1
    with pytest.raises(KeyboardInterrupt), skip_if_failed("part", "step"):
        raise KeyboardInterrupt


class Server:
    """Raises errors, one a call, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self._errors: Iterator[Exception] = iter(errors)
        self.calls = 0

    async def answer(self) -> str:
        """Answer, or raise the next error."""
        self.calls += 1
        for error in self._errors:
            raise error
        return "here"


async def test_a_step_that_cannot_wait_is_repeated_until_the_server_is_back(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(UNREACHABLE, UNREACHABLE)
    answer = await repeat_while_away(server.answer, log, "part.database_away run_id=%s", 7, pause_seconds=0)
    assert (answer, server.calls) == ("here", 3)
    assert caplog.messages == [f"part.database_away run_id=7 error={UNREACHABLE!r}"] * 2


async def test_a_mistake_is_not_repeated() -> None:
    server = Server(MISTAKE)
    with pytest.raises(ProgrammingError):
        await repeat_while_away(server.answer, log, "part.database_away", pause_seconds=0)
    assert server.calls == 1


async def test_a_step_is_repeated_only_for_so_long() -> None:
    server = Server(*[UNREACHABLE] * 5)
    with pytest.raises(DBAPIError):
        await repeat_while_away(server.answer, log, "part.database_away", pause_seconds=0, seconds=-1)
    assert server.calls == 1
