"""Mutations of what waits for answers."""

from tests.mutations.mutation import Mutation

WAITING = "tests/acceptance/test_waiting.py::"

MUTATIONS = [
    Mutation(
        "a wait that is stored before the calls that have returned beside it",
        "worker/execution/answer.py",
        "                await self._steps.written()",
        "                pass",
        "tests/unit/worker/execution/test_steps.py::test_a_run_waits_for_a_person_once_its_finished_calls_are_stored",
    ),
    Mutation(
        "a run that waits although it is to be cancelled",
        "shared/runs/wait.py",
        "AND status = 'running' AND cancel_requested_at IS NULL",
        "AND status = 'running'",
        WAITING + "test_a_wait_of_an_attempt_that_was_lost_or_is_to_be_cancelled_is_not_stored",
    ),
    Mutation(
        "a wait of an attempt that was lost",
        "shared/runs/wait.py",
        "WHERE id = :run_id AND attempt = :attempt AND status = 'running'",
        "WHERE id = :run_id AND :attempt IS NOT NULL AND status = 'running'",
        WAITING + "test_a_wait_of_an_attempt_that_was_lost_or_is_to_be_cancelled_is_not_stored",
    ),
    Mutation(
        "an answered run at the end of the queue",
        "shared/runs/wait.py",
        "after.tenant, first=True)",
        "after.tenant)",
        WAITING + "test_a_webhook_tells_each_time_a_run_comes_to_wait",
    ),
    Mutation(
        "a deadline that runs on while a run waits",
        "shared/runs/wait.py",
        "deadline_at = deadline_at + (now() - waiting_since),",
        "deadline_at = deadline_at,",
        WAITING + "test_a_wait_ends_at_its_own_deadline_and_the_clock_of_the_run_stands_still",
    ),
    Mutation(
        "a second answer that takes the place of the first",
        "shared/runs/wait.py",
        "            if before is not None:\n",
        "            if before == written:\n",
        WAITING + "test_answers_are_checked_each_counts_once_and_strangers_see_nothing",
    ),
    Mutation(
        "an answer that its schema forbids",
        "api/json_schema.py",
        "    if errors:\n",
        "    if False:\n",
        WAITING + "test_answers_are_checked_each_counts_once_and_strangers_see_nothing",
    ),
    Mutation(
        "an answer by a stranger",
        "api/routes/runs.py",
        "    await owned_run(database, caller, run_id)\n    changed =",
        "    changed =",
        WAITING + "test_answers_are_checked_each_counts_once_and_strangers_see_nothing",
    ),
    Mutation(
        "a denial that is taken for an approval",
        "worker/deferred_tools.py",
        'if answer.get("approve") is True:',
        'if "approve" in answer:',
        WAITING + "test_each_kind_is_asked_answered_and_gone_on_from[asks]",
    ),
    Mutation(
        "a run that goes on although something is open",
        "shared/runs/wait.py",
        "statement = _STILL_OPEN if is_open else _GO_ON",
        "statement = _GO_ON",
        WAITING + "test_each_kind_is_asked_answered_and_gone_on_from[asks]",
    ),
    Mutation(
        "a wait without an end",
        "shared/runs/recovery.py",
        "WHERE status = 'waiting' AND wait_until <= now() AND",
        "WHERE status = 'waiting' AND wait_until <= now() - interval '1 year' AND",
        WAITING + "test_a_wait_ends_at_its_own_deadline_and_the_clock_of_the_run_stands_still",
    ),
]
