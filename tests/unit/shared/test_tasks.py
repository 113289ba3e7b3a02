"""Tasks that are told to stop do stop, also those that do not hear it the first time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from agent_relay.shared import tasks
from agent_relay.shared.tasks import run_together, stop


async def deaf(times: int) -> None:
    """Swallow so many cancels, as `asyncio.wait_for` of Python 3.11 can one."""
    for _ in range(times):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
    await asyncio.sleep(3600)


async def begun(times: int) -> asyncio.Task[None]:
    """Begin a task that swallows cancels."""
    task = asyncio.create_task(deaf(times))
    await asyncio.sleep(0)
    return task


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.01)


@pytest.mark.parametrize("times", [0, 1, 3])
async def test_a_task_that_swallows_cancels_is_cancelled_again(times: int) -> None:
    task = await begun(times)

    await stop([task])

    assert task.cancelled()


async def test_one_that_never_hears_is_left_behind_and_named(caplog: pytest.LogCaptureFixture) -> None:
    task = await begun(tasks.TIMES)

    await stop([task])

    assert not task.done()
    assert "tasks.left_behind" in caplog.text
    assert "deaf" in caplog.text
    task.cancel()


async def test_who_stops_others_and_is_stopped_itself_does_both() -> None:
    inner = await begun(2)
    outer = asyncio.create_task(stop([inner]))
    await asyncio.sleep(0)

    await stop([outer])

    assert (inner.cancelled(), outer.cancelled()) == (True, True)


async def test_what_runs_together_ends_together_with_the_first_error() -> None:
    other = asyncio.Event()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    async def goes_on() -> None:
        try:
            await deaf(1)
        finally:
            other.set()

    with pytest.raises(ValueError, match="no"):
        await run_together(fails(), goes_on())

    assert other.is_set()


async def test_what_runs_together_is_stopped_together_whoever_does_not_hear() -> None:
    ended = 0

    async def goes_on() -> None:
        nonlocal ended
        try:
            await deaf(2)
        finally:
            ended += 1

    task = asyncio.create_task(run_together(goes_on(), run_together(goes_on(), goes_on())))
    await asyncio.sleep(0.01)

    await stop([task])

    assert (task.cancelled(), ended) == (True, 3)


async def test_what_a_stopped_task_raises_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    async def raises() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise ValueError("as it ends")

    task = asyncio.create_task(raises())
    await asyncio.sleep(0)
    await stop([task])
    del task

    assert caplog.text == ""
