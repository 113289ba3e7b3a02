"""What is promised of messages into runs, broken one by one."""

from tests.mutations.mutation import Mutation

INTO_RUN = "tests/integration/shared/runs/test_into_run.py::"
MESSAGES = "tests/acceptance/test_messages_into_runs.py::"
WAITING = "tests/acceptance/test_messages_into_waiting_runs.py::"
FORKS = MESSAGES + "test_forks_and_later_runs_know_what_was_sent_into_a_run"

MUTATIONS = [
    Mutation(
        "a message that comes too late and is lost",
        "shared/migrations/versions/0023_messages_into_runs.py",
        "FROM run_messages WHERE run_id = NEW.id AND place > taken_in;",
        "FROM run_messages WHERE run_id = NEW.id AND place < 0;",
        MESSAGES + "test_a_message_that_comes_too_late_is_the_threads_next_run",
    ),
    Mutation(
        "a message that its run has taken in, asked again as a run",
        "shared/migrations/versions/0023_messages_into_runs.py",
        "SELECT greatest(NEW.heard, max(heard)) INTO taken_in",
        "SELECT NEW.heard INTO taken_in",
        INTO_RUN + "test_what_a_finished_step_holds_stays_with_its_run_whatever_ends_it[cancel]",
    ),
    Mutation(
        "messages into a run that is rolled back, asked as runs",
        "shared/migrations/versions/0023_messages_into_runs.py",
        "          AND NEW.thread_id IS NOT NULL AND NOT NEW.rolled_back)",
        "          AND NEW.thread_id IS NOT NULL)",
        WAITING + "test_it_goes_with_the_run_that_is_taken_away[rollback]",
    ),
    Mutation(
        "a message that the agent gets again although a step holds it",
        "worker/execution/steps.py",
        "heard=max((step.heard for step in steps), default=0),",
        "heard=0,",
        MESSAGES + "test_a_message_is_in_the_answer_once_wherever_its_worker_dies[step_stored@2-False]",
    ),
    Mutation(
        "a message of a lost step that the next attempt does not get",
        "worker/execution/attempt.py",
        "Inbox(kept.heard, claimed.last_message, messages,",
        "Inbox(claimed.last_message, claimed.last_message, messages,",
        MESSAGES + "test_a_message_is_in_the_answer_once_wherever_its_worker_dies[step_finished@2-True]",
    ),
    Mutation(
        "a message that is read by an attempt that was lost",
        "shared/runs/into_run.py",
        "SELECT FROM runs WHERE id = :run_id AND attempt = :attempt AND status = 'running')",
        "SELECT FROM runs WHERE id = :run_id AND :attempt > 0 AND status = 'running')",
        INTO_RUN + "test_only_the_attempt_that_holds_a_run_reads_what_was_sent_into_it",
    ),
    Mutation(
        "a message that only Redis can bring",
        "worker/execution/in_flight.py",
        "            if row.last_message:\n",
        "            if False:\n",
        MESSAGES + "test_a_message_whose_api_dies_before_it_says_so_is_sent_once",
    ),
    Mutation(
        "a message into somebody else's run",
        "shared/runs/into_run.py",
        "WHERE runs.id = :run_id AND runs.tenant = :tenant AND runs.user_id = :user_id AND",
        "WHERE runs.id = :run_id AND runs.tenant = :tenant AND :user_id IS NOT NULL AND",
        MESSAGES + "test_without_a_thread_the_answer_says_what_became_of_it",
    ),
    Mutation(
        "a message that a wait holds and the agent gets again",
        "worker/execution/job.py",
        "heard=max(kept.heard, claimed.heard))",
        "heard=kept.heard)",
        WAITING + "test_it_is_in_the_answer_once_wherever_the_worker_dies_that_goes_on[run_waiting@1-asks]",
    ),
    Mutation(
        "a wait that has forgotten what its agent was told",
        "worker/execution/job.py",
        "            calls=asked.calls,\n            heard=attempt.inbox.heard,\n",
        "            calls=asked.calls,\n",
        WAITING + "test_it_is_in_the_answer_once_wherever_the_worker_dies_that_goes_on[run_waiting@1-asks]",
    ),
    Mutation(
        "a run that waits and takes no messages",
        "shared/runs/into_run.py",
        "WHERE id = :run_id AND {IS_UNFINISHED} AND NOT rolled_back AND NOT starts_later",
        "WHERE id = :run_id AND status <> 'waiting' AND {IS_UNFINISHED} AND NOT rolled_back AND NOT starts_later",
        WAITING + "test_it_is_kept_over_a_restart_of_everything_and_given_once_the_run_goes_on",
    ),
    Mutation(
        "a query that steers into a run that answers nothing",
        "shared/runs/into_run.py",
        "WHERE thread_id = :thread_id AND status = 'running' AND cancel_requested_at",
        "WHERE thread_id = :thread_id AND finished_at IS NULL AND cancel_requested_at",
        WAITING + "test_a_query_that_steers_waits_behind_a_run_that_waits",
    ),
    Mutation(
        "a fork whose steps leave out what was sent into runs",
        "shared/runs/fork.py",
        "        FROM said WHERE place > 0\n",
        "        FROM said WHERE false\n",
        FORKS,
    ),
    Mutation(
        "what was sent into a run, forgotten where its messages are not kept",
        "worker/execution/history.py",
        "for said in (exchange, *exchange.steered)]",
        "for said in (exchange,)]",
        FORKS,
    ),
    Mutation(
        "a message into a run that cannot be replaced and is called unknown",
        "shared/runs/accept.py",
        "if (query_id := await connection.scalar(_QUERY_OF_STEERED, named)) is not None:",
        "if (query_id := None) is not None:",
        FORKS,
    ),
]
