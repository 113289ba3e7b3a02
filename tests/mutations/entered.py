"""What is promised of agents that are entered once, and of what they know of their runs, broken one by one."""

from tests.mutations.mutation import Mutation

ENTERED = "tests/unit/worker/execution/test_entered_agents.py::"
SERVERS = "tests/acceptance/test_mcp_servers.py::"
CONTEXT = "tests/acceptance/test_run_context.py::"

MUTATIONS = [
    Mutation(
        "an agent that every run enters for itself",
        "worker/execution/entered_agents.py",
        "        await agent.ready()\n",
        "",
        ENTERED + "test_runs_share_what_an_agent_has_open_and_the_task_that_opened_it_closes_it",
    ),
    Mutation(
        "an agent that is entered for as long as it likes",
        "worker/execution/entered_agents.py",
        "timer = loop.call_later(self._seconds,",
        "timer = loop.call_later(self._seconds + 60,",
        ENTERED + "test_an_agent_that_hangs_as_it_is_entered_holds_up_itself_alone",
    ),
    Mutation(
        "a session that stays broken",
        "worker/execution/answer.py",
        "self.tools_failed = self.tools_failed or _has_failed(event.part)",
        "pass",
        SERVERS + "test_a_server_that_died_is_started_again_for_the_next_run",
    ),
    Mutation(
        "a session that its runs cannot share",
        "worker/guests/context.py",
        "and not is_shared and not (self._first or self).done()",
        "and not (self._first or self).done()",
        SERVERS + "test_a_server_over_http_that_goes_and_comes_again",
    ),
    Mutation(
        "an attempt that is a run of its own to its agent",
        "worker/execution/answer.py",
        "            run_id=self._ids.run_id,\n",
        "",
        CONTEXT + "test_a_run_keeps_its_ids_and_its_deadline_over_attempts",
    ),
    Mutation(
        "kept messages that look like those of another run",
        "worker/execution/answer.py",
        "            message.run_id = self._ids.run_id\n",
        "            pass\n",
        CONTEXT + "test_the_messages_of_a_run_carry_its_ids_whatever_attempt_they_are_of",
    ),
    Mutation(
        "a deadline that the agent itself meets first",
        "worker/execution/attempt.py",
        "            self.stopped = Stop.DEADLINE\n",
        "            pass\n",
        "tests/integration/worker/execution/test_answer.py::test_an_agent_that_meets_the_deadline_first_has_met_it",
    ),
]
