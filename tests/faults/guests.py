"""Guests: runs of agents that misbehave, beside those of agents that do not; and how each of them must end."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic_ai import Agent

from tests.acceptance.test_guests import FAIL, SUCCEED

GUEST = "guest"
GUESTS = {
    GUEST: "tests.support.guests:served",
    **{
        name: f"tests.support.odd_agents:{name}"
        for name in (
            "metadata_object",
            "odd_file_name",
            "huge_number",
            "odd_tool_name",
            "split_emoji",
            "half_emoji",
            "raises_nul",
            "contains_itself",
            "panics",
        )
    },
    "refused_400": "tests.faults.guests:refused_400",
    "refused_401": "tests.faults.guests:refused_401",
}
"""Where the agents are that misbehave."""
TOOLS = (
    "exit_sync",
    "exit_async",
    "exit_in_a_task",
    "exit_in_a_callback",
    "keyboard_interrupt_sync",
    "keyboard_interrupt_async",
    "generator_exit_async",
    "base_exception_async",
    "cancels_its_task",
    "recursion",
    "memory_error",
    "kills_itself_softly_sync",
    "kills_its_group",
    "ignores_sigterm",
    "takes_sigterm",
    "takes_the_wakeup_descriptor",
    "signal_in_a_thread",
    "terminates_a_fork_sync",
    "terminates_a_fork_async",
    "pool_of_forks",
    "forked_child_exits",
    "forked_child_raises",
    "forked_child_of_the_loop_runs_on",
    "changes_directory",
    "changes_the_environment",
    "runs_a_loop_in_a_thread",
    "stops_the_loop",
    "closes_the_loop",
    "nests_asyncio",
    "closes_stdout",
    "loses_sys_stdout",
    "thread_raises",
    "prints_for_a_while",
    "holds_the_loop",
)
"""The tools of `tests/support/guests.py` that a guest may call here; none silences the log, which tells of kills."""


@dataclass(frozen=True, slots=True)
class Misdeed:
    """What a guest does, and how its run ends."""

    agent_type: str
    name: str
    output: str | None = None
    code: str | None = None


MISDEEDS = {
    misdeed.name: misdeed
    for misdeed in (
        *(Misdeed(GUEST, name, SUCCEED.get(name), "agent_error" if name in FAIL else None) for name in TOOLS),
        Misdeed("metadata_object", "metadata_object", "Done."),
        Misdeed("odd_file_name", "odd_file_name", "Done."),
        Misdeed("huge_number", "huge_number", "Done."),
        Misdeed("odd_tool_name", "odd_tool_name", "Done."),
        Misdeed("split_emoji", "split_emoji", "So: 😀!"),
        Misdeed("half_emoji", "half_emoji", "So: \ufffd!"),
        Misdeed("raises_nul", "raises_nul", code="output_invalid"),
        Misdeed("contains_itself", "contains_itself", code="agent_error"),
        Misdeed("panics", "panics", code="agent_error"),
        Misdeed("refused_400", "refused_400", code="model_rejected"),
        Misdeed("refused_401", "refused_401", code="model_rejected"),
    )
}


@dataclass(frozen=True, slots=True)
class Visit:
    """A query to a guest: its first word says what it does, the second makes it one that nobody else asks."""

    misdeed: str
    nonce: str

    def __str__(self) -> str:
        return f"{self.misdeed} {self.nonce}"


def misdeed_of(query: str) -> Misdeed:
    """Say what a visit was for."""
    return MISDEEDS[query.split(maxsplit=1)[0]]


refused_400 = Agent("openai-chat:refuses-400", defer_model_check=True)
refused_401 = Agent("openai-chat:refuses-401", defer_model_check=True)
