"""An agent is entered once for all of its runs; one that cannot be entered takes neither a worker nor another agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Self

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import AbstractToolset, CombinedToolset, FunctionToolset, WrapperToolset

from agent_relay.worker.catalog import RegisteredAgent
from agent_relay.worker.execution.entered_agents import EnteredAgents, NotEntered
from tests.support.in_process import offer_of


class Session(FunctionToolset[Any]):
    """A toolset that notes what it opens and closes."""

    def __init__(self, opening: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__()
        self._opening = opening
        self.opened = 0
        self.closed = 0
        self.tasks: list[asyncio.Task[Any] | None] = []

    async def __aenter__(self) -> Self:
        self.opened += 1
        self.tasks.append(asyncio.current_task())
        if self._opening is not None:
            await self._opening()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed += 1
        self.tasks.append(asyncio.current_task())


def offer(*toolsets: AbstractToolset[Any], name: str = "it") -> RegisteredAgent:
    return replace(offer_of(Agent(TestModel(call_tools=[]), toolsets=toolsets)), agent_type=name)


async def use(agents: EnteredAgents, offered: RegisteredAgent, *, fails: bool = False) -> None:
    async with agents.use(offered, lambda: fails):
        await asyncio.sleep(0)


async def test_runs_share_what_an_agent_has_open_and_the_task_that_opened_it_closes_it() -> None:
    session = Session()
    offered, agents = offer(session), EnteredAgents(5)

    await asyncio.gather(*(use(agents, offered) for _ in range(20)))
    await use(agents, offered)
    assert (session.opened, session.closed) == (1, 0)

    await agents.close()
    assert (session.opened, session.closed) == (1, 1)
    assert session.tasks[0] is session.tasks[1]
    assert session.tasks[0] is not asyncio.current_task()


async def test_an_agent_is_entered_with_its_first_run_and_no_sooner() -> None:
    session, other = Session(), Session()
    agents = EnteredAgents(5)

    offered, _ = offer(session), offer(other, name="other")
    await use(agents, offered)
    await agents.close()

    assert (session.opened, other.opened) == (1, 0)


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), BaseExceptionGroup("", [SystemExit()])]
)
async def test_an_agent_that_cannot_be_entered_says_so_and_the_next_run_tries_again(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    async def opening() -> None:
        if broken:
            raise error

    offered, agents = offer(Session(opening)), EnteredAgents(5)
    problems = await asyncio.gather(*(use(agents, offered) for _ in range(3)), return_exceptions=True)

    assert [str(problem) for problem in problems] == [f"The agent could not be entered: {type(error).__name__}."] * 3
    assert caplog.text.count("agents.not_entered agent=it") == 1
    broken = False
    await use(agents, offered)
    await agents.close()


async def _hangs() -> None:
    await asyncio.Event().wait()


async def _hangs_whatever_is_cancelled() -> None:
    for _ in range(3):
        try:
            await asyncio.sleep(0.5)
        except asyncio.CancelledError:
            continue


@pytest.mark.parametrize("opening", [_hangs, _hangs_whatever_is_cancelled])
async def test_an_agent_that_hangs_as_it_is_entered_holds_up_itself_alone(
    opening: Callable[[], Awaitable[None]],
) -> None:
    hanging, working = Session(opening), Session()
    hangs, works, agents = offer(hanging), offer(working, name="other"), EnteredAgents(0.2)

    waiting = [asyncio.create_task(use(agents, hangs)) for _ in range(2)]
    await use(agents, works)
    assert not any(task.done() for task in waiting)

    for _ in range(2):
        problems = await asyncio.gather(*waiting, return_exceptions=True)
        assert {str(problem) for problem in problems} == {"The agent was not ready within 0.2 s (AGENT_READY_SECONDS)."}
        waiting = [asyncio.create_task(use(agents, hangs))]
    await asyncio.gather(*waiting, return_exceptions=True)
    await agents.close()
    assert (working.opened, working.closed) == (1, 1)


async def test_a_run_that_gives_up_waiting_leaves_the_others_waiting() -> None:
    go_on = asyncio.Event()

    async def opening() -> None:
        await go_on.wait()

    session = Session(opening)
    offered, agents = offer(session), EnteredAgents(5)
    first, second = (asyncio.create_task(use(agents, offered)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    go_on.set()
    await second

    assert first.cancelled()
    assert session.opened == 1
    await agents.close()


def _plain(session: Session) -> AbstractToolset[Any]:
    return session


def _wrapped(session: Session) -> AbstractToolset[Any]:
    return CombinedToolset[Any]([WrapperToolset[Any](session)])


@pytest.mark.parametrize("around", [_plain, _wrapped])
async def test_a_toolset_of_ones_own_is_entered_anew_once_a_run_failed_and_none_uses_it(
    around: Callable[[Session], AbstractToolset[Any]],
) -> None:
    session = Session()
    offered, agents = offer(around(session)), EnteredAgents(5)

    async with agents.use(offered, lambda: False):
        await use(agents, offered, fails=True)
        await use(agents, offered)
        assert (session.opened, session.closed) == (1, 0)
    await use(agents, offered, fails=True)
    await use(agents, offered)
    await use(agents, offered)

    assert (session.opened, session.closed) == (2, 1)
    await agents.close()


async def test_what_has_nothing_open_is_not_entered_anew() -> None:
    plain = FunctionToolset[Any]()
    entered = 0
    offered, agents = offer(plain), EnteredAgents(5)
    enter = offered.agent.__aenter__

    async def counted(_: Any) -> Any:
        nonlocal entered
        entered += 1
        return await enter()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(offered.agent), "__aenter__", counted)
        for _ in range(3):
            await use(agents, offered, fails=True)
    await agents.close()

    assert entered == 1


async def test_an_agent_whose_task_is_ended_by_what_it_has_open_is_entered_anew() -> None:
    session = Session()
    offered, agents = offer(session), EnteredAgents(5)
    await use(agents, offered)
    assert session.tasks[0] is not None

    session.tasks[0].cancel()  # As a task group of a session does that has lost its server.
    await asyncio.wait([session.tasks[0]])
    await use(agents, offered)

    assert (session.opened, session.closed) == (2, 1)
    await agents.close()


async def test_no_run_is_entered_where_it_cannot_be() -> None:
    async def opening() -> None:
        raise OSError

    agents, began = EnteredAgents(5), False
    with pytest.raises(NotEntered):
        async with agents.use(offer(Session(opening)), lambda: False):
            began = True
    assert not began
