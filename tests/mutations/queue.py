"""What the life of a run, its lanes and its models promise, broken one by one."""

from tests.mutations.mutation import Mutation

RUNS = "tests/test_runs.py::"
DEAD_LETTERS = "tests/test_dead_letters.py::"
ISOLATION = "tests/test_isolation.py::"
LANES = "tests/test_lanes.py::"
SHARES = "tests/test_shares.py::"
STOPPING = "tests/test_stopping.py::"
RETRYING = "tests/test_retrying.py::"

MUTATIONS = [
    Mutation(
        "finish without the fence",
        "shared/runs/finish.py",
        """        WHERE id = :run_id AND attempt = :attempt AND status = 'running'
        RETURNING *""",
        """        WHERE id = :run_id AND CAST(:attempt AS int) > 0 AND status = 'running'
        RETURNING *""",
        RUNS + "test_an_attempt_that_was_overtaken_finishes_nothing",
    ),
    Mutation(
        "claim out of turn",
        "shared/runs/claim.py",
        "earlier.seq < run.seq AND",
        "earlier.seq < 0 AND",
        RUNS + "test_a_run_is_not_claimed_before_the_one_before_it_has_ended",
    ),
    Mutation(
        "claim what is taken",
        "shared/runs/claim.py",
        "WHERE id = :run_id AND status = 'queued' AND due_at",
        "WHERE id = :run_id AND status IN ('queued', 'running') AND due_at",
        RUNS + "test_a_run_is_claimed_once",
    ),
    Mutation(
        "a claim of the dead",
        "shared/runs/claim.py",
        "id = :worker_id AND ended_at IS NULL AND lease_until > now()",
        "id = :worker_id",
        RUNS + "test_the_dead_claim_nothing",
    ),
    Mutation(
        "a suspect among others",
        "shared/runs/claim.py",
        "(crashes = 0 OR CAST(:isolated AS boolean))",
        "(crashes >= 0 OR CAST(:isolated AS boolean))",
        RUNS + "test_a_run_of_the_dead_is_a_suspect_and_has_a_budget",
    ),
    Mutation(
        "a crash that does not count",
        "shared/runs/take_back.py",
        "crashes = crashes + 1,",
        "crashes = crashes,",
        RUNS + "test_a_run_of_the_dead_is_a_suspect_and_has_a_budget",
    ),
    Mutation(
        "a living worker judged",
        "shared/runs/take_back.py",
        "ended_at IS NULL AND lease_until < now() RETURNING id",
        "ended_at IS NULL RETURNING id",
        RUNS + "test_only_a_lease_that_has_run_out_is_judged",
    ),
    Mutation(
        "a lease judged although the database was away",
        "shared/sweeper.py",
        "or at - self._seen > self._lease / 3",
        "",
        RUNS + "test_a_lease_is_judged_only_over_a_lease_of_unbroken_database",
    ),
    Mutation(
        "a cancel that comes too late and wins",
        "shared/runs/cancel.py",
        "WHERE id = :run_id AND status IN ('queued', 'running')",
        "WHERE id = :run_id",
        RUNS + "test_a_stored_answer_wins_over_a_cancel_that_came_too_late",
    ),
    Mutation(
        "given back although it is to be cancelled",
        "shared/runs/finish.py",
        """AND status = 'running' AND cancel_requested_at IS NULL
    RETURNING {RING_COLUMNS}
\"\"\")  # noqa: S608  (a constant)

_LET_GO""",
        """AND status = 'running'
    RETURNING {RING_COLUMNS}
\"\"\")  # noqa: S608  (a constant)

_LET_GO""",
        RUNS + "test_a_run_that_is_to_be_cancelled_is_not_given_back",
    ),
    Mutation(
        "one tenant before all others",
        "shared/lanes.py",
        "turn = math.max(tonumber(head[2] or 0), tonumber(redis.call('HGET', KEYS[2], tenant) or -1) + 1)",
        "turn = redis.call('HINCRBY', KEYS[2], 'all', #ARGV)",
        LANES + "test_tenants_alternate_however_many_calls_one_of_them_has",
    ),
    Mutation(
        "who waited already goes last",
        "shared/lanes.py",
        "if first == '' then",
        "if first ~= '2' then",
        LANES + "test_who_waited_already_goes_first",
    ),
    Mutation(
        "newcomers behind the turn of those who wait",
        "shared/lanes.py",
        "math.max(tonumber(head[2] or 0),",
        "math.max(tonumber(head[2] or 0) + 1,",
        LANES + "test_who_comes_new_is_next_but_one",
    ),
    Mutation(
        "newcomers before all who wait, behind one that was given back",
        "shared/lanes.py",
        "redis.call('ZRANGEBYSCORE', KEYS[1], 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)",
        "redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')",
        LANES + "test_who_went_first_puts_no_newcomer_before_those_who_wait",
    ),
    Mutation(
        "a position in a batch that counts no interactive runs",
        "shared/lanes.py",
        "rank + ((before[call.pool] or 0) if call.lane == Lane.BATCH else 0)",
        "rank",
        LANES + "test_a_position_counts_what_goes_before",
    ),
    Mutation(
        "a batch before somebody who waits",
        "worker/shares.py",
        "return [Lane.INTERACTIVE, Lane.BATCH]",
        "return [Lane.BATCH, Lane.INTERACTIVE]",
        SHARES + "test_a_thousand_runs_of_a_batch_and_two_hundred_of_a_tenant_hold_nobody_up",
    ),
    Mutation(
        "a batch that starves",
        "worker/shares.py",
        "if self._in_a_row >= self._batch_turn:",
        "if self._in_a_row < 0:",
        SHARES + "test_a_thousand_runs_of_a_batch_and_two_hundred_of_a_tenant_hold_nobody_up",
    ),
    Mutation(
        "a batch in the last slots",
        "worker/shares.py",
        "self._kept = min(math.ceil(slots * interactive_share), slots - 1)",
        "self._kept = 0",
        SHARES + "test_the_last_slots_stay_free_for_interactive_runs",
    ),
    Mutation(
        "a turn of a batch that takes what is kept",
        "worker/shares.py",
        "if self._held[Lane.BATCH] >= self._slots - self._kept:",
        "if self._held[Lane.BATCH] >= self._slots:",
        SHARES + "test_a_turn_takes_nothing_of_what_is_kept_for_interactive_runs",
    ),
    Mutation(
        "a slot that a batch left and nobody fills",
        "worker/doorbell.py",
        "if self._listed is not None and not set(self._shares.lanes()) <= set(self._listed):",
        "if self._shares is None:",
        SHARES + "test_a_slot_that_a_batch_left_is_filled_at_once",
    ),
    Mutation(
        "a refusal of the model asked again",
        "worker/retrying.py",
        "if isinstance(error, _FINAL):",
        "if error is None:",
        RETRYING + "test_a_refusal_is_final",
    ),
    Mutation(
        "a model that is not asked again",
        "worker/retrying.py",
        "if tried >= self._tries or pause is None:",
        "if tried:",
        RETRYING + "test_a_model_that_recovers_is_asked_until_it_does",
    ),
    Mutation(
        "two operators, two runs",
        "shared/runs/requeue.py",
        "WHERE id = :id AND requeued_as IS NULL RETURNING",
        "WHERE id = :id RETURNING",
        DEAD_LETTERS + "test_two_operators_make_one_run_of_a_dead_letter",
    ),
    Mutation(
        "a poison run among others once more",
        "shared/runs/requeue.py",
        "suspect=dead.crashes > 0",
        "suspect=False",
        DEAD_LETTERS + "test_what_killed_workers_is_asked_again_in_a_process_of_its_own",
    ),
    Mutation(
        "what was to be cancelled is asked again",
        "shared/runs/requeue.py",
        "cancel_requested_at IS NULL AND threads.deleted_at IS NULL",
        "threads.deleted_at IS NULL",
        DEAD_LETTERS + "test_only_what_could_come_to_more_is_a_dead_letter",
    ),
    Mutation(
        "every tenant an operator",
        "api/identity.py",
        "_holder(request, request.app.state.settings.operator_keys)",
        "_holder(request, request.app.state.settings.operator_keys | request.app.state.settings.api_keys)",
        DEAD_LETTERS + "test_a_tenant_is_no_operator_and_an_operator_no_tenant",
    ),
    Mutation(
        "a claim in flight that outlives the stop",
        "worker/roster.py",
        "        if self._stopping:\n",
        "        if not self._attempts:\n",
        STOPPING + "test_a_run_that_is_being_claimed_as_its_worker_stops_is_given_back",
    ),
    Mutation(
        "a goodbye with runs in hand",
        "worker/lease.py",
        "WHERE worker_id = %(id)s AND status = 'running' AND cancel_requested_at IS NULL\n    RETURNING id",
        "WHERE worker_id = %(id)s AND status = 'queued' AND cancel_requested_at IS NULL\n    RETURNING id",
        STOPPING + "test_a_worker_that_has_said_goodbye_holds_nothing",
    ),
    Mutation(
        "giving back counts as a crash",
        "shared/runs/finish.py",
        "SET status = 'queued', worker_id = NULL, begun = :begun, usage",
        "SET status = 'queued', worker_id = NULL, crashes = crashes + 1, begun = :begun, usage",
        RUNS + "test_giving_back_is_no_crash",
    ),
    Mutation(
        "a stop that is told as a loss",
        "worker/job.py",
        "attempt.usage, Begun.WORKER_STOPPING)",
        "attempt.usage, Begun.WORKER_LOST)",
        "tests/test_processes.py::test_a_worker_told_to_stop_gives_its_runs_back_at_once",
    ),
    Mutation(
        "a suspect's process believed by its status",
        "worker/isolation.py",
        "            await declare_dead(self._database, worker_id)\n",
        "            if child.exitcode != 0:\n                await declare_dead(self._database, worker_id)\n",
        ISOLATION + "test_a_suspect_whose_process_ends_without_a_word_waits_for_no_lease",
    ),
    Mutation(
        "a stop that breaks over a process that is only being started",
        "worker/isolation.py",
        "            if child.pid is not None:\n                child.terminate()\n",
        "            child.terminate()\n",
        ISOLATION + "test_a_process_is_told_to_stop_even_if_it_is_only_being_started",
    ),
]
