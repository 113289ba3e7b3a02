"""Agents are entered once a process: all runs share their MCP sessions and HTTP clients, which live as long as it.

An agent is entered with its first run, so that effects of entering it count as that run's. After a run whose tools
failed, the sessions are checked before the next run begins: one that does not answer is opened again.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from typing import Any

from agent_relay.shared.failure_codes import FailureCode
from agent_relay.worker.catalog import RegisteredAgent
from agent_relay.worker.guests.context import EnteredFor, guest_context

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""After this time, an MCP server that was asked for its tools counts as broken."""
LEAVE_SECONDS = 2.0
"""Time in which the agents of a worker that stops have to close their sessions."""

_Waiter = asyncio.Future[str | None]
"""Done once the agent can be used; or with the rest of a sentence with the reason why it cannot."""


class NotEntered(Exception):
    """The message is a sentence with the reason why an agent cannot be used now; the next run tries again."""

    code = FailureCode.AGENT_ERROR


class EnteredAgents:
    """The agents of this process that are entered, by the names that callers know them by."""

    def __init__(self, seconds: float) -> None:
        """Enter nothing yet. To enter an agent, or to check its sessions, may take this number of seconds."""
        self._seconds = seconds
        self._agents: dict[str, _EnteredAgent] = {}
        self._surroundings = copy_context()
        """The worker's own context: the sessions of an agent belong to no run."""

    @asynccontextmanager
    async def use(self, offer: RegisteredAgent, tools_failed: Callable[[], bool]) -> AsyncGenerator[None]:
        """Enter the agent for a run, unless it is entered; the run reports after it whether tools of its own failed.

        Raises:
            NotEntered: it cannot be.
        """
        agent = self._agents.get(offer.agent_type)
        if agent is None:
            agent = self._agents[offer.agent_type] = _EnteredAgent(offer, self._seconds, self._surroundings)
        await agent.ready()
        agent.users += 1
        try:
            yield
        finally:
            agent.users -= 1
            agent.is_doubted |= tools_failed()

    async def close(self) -> None:
        """Close the sessions of all agents; those that take too long are left behind."""
        leaving = [task for agent in self._agents.values() if (task := agent.leave()) is not None]
        if leaving:
            await asyncio.wait(leaving, timeout=LEAVE_SECONDS)
        for task in leaving:
            task.cancel()


class _EnteredAgent:
    """An agent, and the task that has entered it: the task that opens a session also closes it."""

    def __init__(self, offer: RegisteredAgent, seconds: float, surroundings: Context) -> None:
        self._offer = offer
        self._seconds = seconds
        self._surroundings = surroundings
        self._holder: asyncio.Task[None] | None = None
        self._looks: asyncio.Queue[_Waiter | None] = asyncio.Queue()
        """Who waits until the sessions were looked at; None ends the holder."""
        self._waiter: _Waiter | None = None
        """The future for which all new runs wait."""
        self._is_open = False
        self.is_doubted = False
        """Whether the sessions are to be looked at before the next run begins."""
        self.users = 0
        """Runs that use it now."""

    async def ready(self) -> None:
        """Wait until the agent can be used."""
        while self._waiter is not None or self.is_doubted or not self._is_open:
            waiter = self._waiter = self._waiter or self._begin()
            if (problem := await asyncio.shield(waiter)) is not None:
                raise NotEntered(f"The agent {problem}.")

    def leave(self) -> asyncio.Task[None] | None:
        """End the holder, if there is one."""
        self._looks.put_nowait(None)
        return self._holder

    def _begin(self) -> _Waiter:
        """Enter the agent, or look at its sessions, for no longer than that may take."""
        loop = asyncio.get_running_loop()
        waiter: _Waiter = loop.create_future()
        timer = loop.call_later(self._seconds, self._give_up, waiter, context=Context())
        waiter.add_done_callback(lambda _: timer.cancel(), context=Context())
        if self._is_open:
            self.is_doubted = False
            self._looks.put_nowait(waiter)
            return waiter
        self._looks = asyncio.Queue()
        context = self._surroundings.run(guest_context, EnteredFor(self._offer.agent_type))
        self._holder = loop.create_task(self._hold(waiter, self._looks), context=context)
        return waiter

    def _give_up(self, waiter: _Waiter) -> None:
        """Leave a holder behind that takes too long; the next run begins with another one."""
        log.error("agents.not_entered agent=%s seconds=%g: it took too long", self._offer.agent_type, self._seconds)
        holder, self._holder, self._is_open = self._holder, None, False
        self._tell(waiter, f"was not ready within {self._seconds:g} s (AGENT_READY_SECONDS)")
        if holder is not None:
            holder.cancel()

    async def _hold(self, waiter: _Waiter | None, looks: asyncio.Queue[_Waiter | None]) -> None:
        """Enter the agent and keep it entered; again where it has to be renewed."""
        problem = None
        try:
            while waiter is not None:
                async with self._offer.agent:
                    if self._holder is not asyncio.current_task():
                        return  # It took too long: another one is to do it.
                    self._is_open = True
                    self._tell(waiter, None)
                    waiter = await self._look_after(looks)
        except BaseException as error:  # Whatever an agent raises, it ends no worker.
            problem = f"could not be entered: {type(error).__name__}"
            log.exception("agents.not_entered agent=%s", self._offer.agent_type)
        finally:
            if self._holder is asyncio.current_task():
                self._holder, self._is_open = None, False
            if waiter is not None:
                self._tell(waiter, problem)
            while not looks.empty() and (left := looks.get_nowait()) is not None:
                self._tell(left, None)  # It sees that the agent is not entered any more.

    async def _look_after(self, looks: asyncio.Queue[_Waiter | None]) -> _Waiter | None:
        """Check the sessions on each request; return the waiter for whom the agent is to be entered again."""
        while (waiter := await looks.get()) is not None:
            sessions, others = _toolsets(self._offer)
            if others and not self.users:
                return waiter
            try:
                for session in sessions:
                    await _open_if_broken(session, self._offer.agent_type)
            except Exception as error:
                log.exception("agents.not_reopened agent=%s", self._offer.agent_type)
                self.is_doubted = True
                self._tell(waiter, f"cannot reach one of its MCP servers: {type(error).__name__}")
            else:
                self._tell(waiter, None)
        return None

    def _tell(self, waiter: _Waiter, problem: str | None) -> None:
        if not waiter.done():
            waiter.set_result(problem)
        if self._waiter is waiter:
            self._waiter = None


def _toolsets(offer: RegisteredAgent) -> tuple[list[Any], bool]:
    """List the MCP sessions that runs share, and whether other toolsets are entered that cannot be checked."""
    leaves: list[Any] = []
    for toolset in offer.agent.toolsets:
        toolset.apply(leaves.append)
    mcp: Any = sys.modules.get("pydantic_ai.mcp")  # Whoever has such a toolset imported it.
    sessions = [leaf for leaf in leaves if mcp is not None and isinstance(leaf, mcp.MCPToolset)]
    others = [leaf for leaf in leaves if not type(leaf).__aenter__.__module__.startswith("pydantic_ai.")]
    return [session for session in sessions if session.is_running], bool(others)


async def _open_if_broken(session: Any, agent_type: str) -> None:
    """Ask an MCP server for its tools; if it does not answer, open the session again.

    The toolset does not open it by itself while it is entered by runs or by this process.
    """
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            await session.client.list_tools()
    except Exception as error:  # noqa: BLE001  (as many kinds of errors as there are transports)
        log.warning("agents.session_broken agent=%s session=%s error=%r", agent_type, session.label, error)
    else:
        return
    await session.client.close()
    await session.client.__aenter__()
    session._invalidate_tools_cache()  # noqa: SLF001  (its server may be another version)
    session._invalidate_resources_cache()  # noqa: SLF001
    session._invalidate_prompts_cache()  # noqa: SLF001
