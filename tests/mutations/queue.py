"""What the life of a run, its lanes and its models promise, broken one by one."""

from tests.mutations.mutation import Mutation

RUNS = "tests/test_runs.py::"
CANCELLING = "tests/test_cancelling.py::"
DEAD_LETTERS = "tests/test_dead_letters.py::"
ISOLATION = "tests/test_isolation.py::"
LOST_REPLIES = "tests/test_lost_replies.py::"
PULSE = "tests/test_pulse.py::"
LANES = "tests/test_lanes.py::"
SHARES = "tests/test_shares.py::"
STOPPING = "tests/test_stopping.py::"
TRANSACT = "tests/test_transact.py::"
RETRYING = "tests/test_retrying.py::"

MUTATIONS = [
    Mutation(
        "finish without the fence",
        "shared/runs/finish.py",
        """usage = CAST(:usage AS jsonb)
        WHERE id = :run_id AND attempt = :attempt AND status""",
        """usage = CAST(:usage AS jsonb)
        WHERE id = :run_id AND CAST(:attempt AS int) > 0 AND status""",
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
        "shared/judge.py",
        "or at - self._seen > self._lease / 2",
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
        "not isinstance(error, ModelAPIError) or isinstance(error, _FINAL)",
        "not isinstance(error, ModelAPIError)",
        RETRYING + "test_a_refusal_is_final",
    ),
    Mutation(
        "a model that is not asked again",
        "worker/retrying.py",
        "if tried >= self._tries or pause is None:",
        "if tried:",
        RETRYING + "test_a_model_that_recovers_is_asked_until_it_does_and_no_sooner_than_it_says",
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
        "worker/attempt.py",
        "return Begun.WORKER_STOPPING",
        "return Begun.WORKER_LOST",
        "tests/test_processes.py::test_a_worker_told_to_stop_gives_its_runs_back_at_once",
    ),
    Mutation(
        "a suspect's process believed by its status",
        "worker/isolation.py",
        "            await declare_dead(self._database, worker_id)\n",
        "            if status != 0:\n                await declare_dead(self._database, worker_id)\n",
        ISOLATION + "test_a_suspect_whose_process_ends_without_a_word_waits_for_no_lease",
    ),
    Mutation(
        "what a dead worker's cancelled run had produced is lost",
        "shared/runs/finish.py",
        "AND status = 'cancelled' AND partial_output IS NOT NULL",
        "AND status = 'cancelled' AND partial_output IS NULL",
        CANCELLING + "test_a_run_that_is_to_be_cancelled_and_whose_worker_dies_is_cancelled_with_what_is_known",
    ),
    Mutation(
        "a wish to cancel that undoes an answer",
        "shared/runs/finish.py",
        """usage = CAST(:usage AS jsonb)
        WHERE id = :run_id AND attempt""",
        """usage = CAST(:usage AS jsonb)
        WHERE (cancel_requested_at IS NULL OR CAST(:status AS text) = 'cancelled') AND id = :run_id AND attempt""",
        CANCELLING + "test_an_answer_that_is_stored_after_the_wish_wins_over_it",
    ),
    Mutation(
        "a query that waits although it would not",
        "shared/runs/accept.py",
        "                    raise ThreadBusy(busy)\n",
        "                    superseded = []\n",
        CANCELLING + "test_a_query_that_would_not_wait_is_refused_while_a_run_is_unfinished",
    ),
    Mutation(
        "an interrupt that leaves the running run alone",
        "shared/runs/cancel.py",
        "WHERE thread_id = :thread_id AND status IN ('queued', 'running')",
        "WHERE thread_id = :thread_id AND status = 'queued'",
        CANCELLING + "test_a_query_that_interrupts_cancels_all_before_it_and_keeps_what_they_had",
    ),
    Mutation(
        "a rollback that is forgotten by the time the run ends",
        "shared/runs/cancel.py",
        "rolled_back = :roll_back,",
        "rolled_back = :roll_back AND status = 'queued',",
        CANCELLING + "test_a_query_that_rolls_back_erases_what_was_before_it_however_that_ends",
    ),
    Mutation(
        "a claim after the deadline",
        "shared/runs/claim.py",
        "AND due_at <= now() AND deadline_at > now()",
        "AND due_at <= now()",
        CANCELLING + "test_a_run_that_nobody_takes_fails_at_its_deadline",
    ),
    Mutation(
        "a worker not given the time to end its run at the deadline",
        "shared/runs/take_back.py",
        "CASE status WHEN 'running' THEN {OVERDUE_SECONDS} ELSE 0 END",
        "CASE status WHEN 'running' THEN 0 ELSE 0 END",
        CANCELLING + "test_a_run_whose_worker_does_not_end_it_fails_a_while_after_its_deadline",
    ),
    Mutation(
        "a deadline that wins over a wish to cancel",
        "shared/runs/take_back.py",
        "SET status = CASE WHEN cancel_requested_at IS NULL THEN 'failed' ELSE 'cancelled' END,",
        "SET status = 'failed',",
        CANCELLING + "test_what_was_to_be_cancelled_does_not_fail_at_its_deadline",
    ),
    Mutation(
        "a receipt for a run that still runs",
        "api/runs.py",
        "    status = 200 if row.status in TERMINAL else 202\n",
        "    status = 200\n",
        CANCELLING + "test_a_receipt_is_given_only_once_the_run_has_ended",
    ),
    Mutation(
        "a caller of the blocking call who hangs up in vain",
        "api/query.py",
        "    await cancel_run(service, row.id)\n",
        "    del service, row\n",
        CANCELLING + "test_what_hanging_up_means_is_for_the_caller_to_say",
    ),
    Mutation(
        "a reader who hangs up in vain",
        "api/stream.py",
        "if self._lost and self._hung_up is not None:",
        "if not self._lost and self._hung_up is not None:",
        CANCELLING + "test_what_hanging_up_means_is_for_the_caller_to_say",
    ),
    Mutation(
        "a deleted thread whose runs go on",
        "api/threads.py",
        "cancellations = await supersede(connection, thread_id, roll_back=False)",
        "cancellations = []",
        "tests/test_processes.py::test_a_deleted_thread_is_gone_and_its_streams_end",
    ),
    Mutation(
        "a wish to cancel that is lost with the reply to the claim",
        "shared/runs/finish.py",
        "SET status = CASE WHEN cancel_requested_at IS NULL THEN 'queued' ELSE 'cancelled' END,",
        "SET status = 'queued',",
        CANCELLING + "test_a_run_that_is_to_be_cancelled_and_that_nobody_knows_of_is_cancelled",
    ),
    Mutation(
        "a server that hangs and that nobody doubts",
        "shared/pulse.py",
        "            self._timer = loop.call_later(DOUBT_SECONDS, self._doubt)\n",
        "            pass\n",
        PULSE + "test_nobody_waits_for_a_server_that_hangs",
    ),
    Mutation(
        "a slow server taken for one that hangs",
        "shared/pulse.py",
        "return (asked.done() and asked.result()) or self._heard_at > asked_at + DOUBT_SECONDS",
        "return False",
        PULSE + "test_a_server_that_takes_its_time_is_waited_for",
    ),
    Mutation(
        "a slow server that is cut off again and again",
        "shared/pulse.py",
        "min(2 * self._sign_seconds, LONGEST_SIGN_SECONDS)",
        "self._sign_seconds",
        PULSE + "test_a_server_that_was_given_up_too_soon_gets_longer",
    ),
    Mutation(
        "a server that answers others, taken for one that hangs",
        "shared/pulse.py",
        " or self._heard_at > asked_at + DOUBT_SECONDS",
        "",
        PULSE + "test_who_answers_others_lives",
    ),
    Mutation(
        "a refusal taken for silence",
        "shared/pulse.py",
        "return True  # It refuses",
        "return False  # It refuses",
        PULSE + "test_a_refusal_is_an_answer",
    ),
    Mutation(
        "a connection that was not made in time, left to the collection of garbage",
        "shared/pulse.py",
        "raise error.with_traceback(None)",
        "raise error",
        PULSE + "test_a_connection_that_was_not_made_in_time_is_not_left_open",
    ),
    Mutation(
        "a beat that waits for a server that hangs",
        "worker/lease.py",
        "timeout=HANGING_SECONDS)",
        "timeout=None)",
        PULSE + "test_a_beat_that_hangs_gives_the_lease_up_and_takes_it_up_again",
    ),
    Mutation(
        "a query that was stored and is refused",
        "shared/database.py",
        "or not await was_committed(database, stored.transaction_id):",
        "or stored.transaction_id:",
        LOST_REPLIES + "test_a_query_that_was_stored_is_accepted",
    ),
    Mutation(
        "a query that was not stored and is accepted",
        "shared/database.py",
        'return status == "committed"',
        "return True",
        LOST_REPLIES + "test_a_query_that_was_not_stored_is_refused",
    ),
    Mutation(
        "a commit under way taken for none",
        "shared/database.py",
        'if status != "in progress":',
        "if status:",
        LOST_REPLIES + "test_a_commit_that_is_under_way_is_waited_for",
    ),
    Mutation(
        "an answer that was stored and is not told",
        "worker/job.py",
        "return row or await self._while_it_lasts(claimed, lambda: ended_row(self._database, claimed))",
        "return row",
        LOST_REPLIES + "test_an_answer_that_was_stored_is_told_and_not_stored_again",
    ),
    Mutation(
        "a run held without knowing until its deadline",
        "worker/roster.py",
        "for run_id, attempt in unknown & self._orphans:",
        "for run_id, attempt in self._orphans - unknown:",
        LOST_REPLIES + "test_a_run_that_was_claimed_without_the_worker_knowing_is_let_go",
    ),
    Mutation(
        "our own trouble told as the agent's",
        "worker/job.py",
        "if is_ours(error) and attempt",
        "if not is_ours(error) and attempt",
        "tests/test_servers_away.py::test_a_database_that_breaks_under_an_agent_each_time_is_the_agents_doing",
    ),
    Mutation(
        "a connection used although its other end was closed",
        "shared/database.py",
        "if driver.closed or ends.poll(0):",
        "if driver.closed:",
        TRANSACT + "test_connections_that_were_closed_meanwhile_are_replaced_before_they_are_used",
    ),
    Mutation(
        "a session without a transaction, after one of a statement",
        "shared/database.py",
        "                await_only(driver.set_autocommit(False))\n",
        "",
        TRANSACT + "test_a_session_on_the_same_connection_is_a_transaction_again",
    ),
    Mutation(
        "a connection of ours that broke and is not known for it",
        "shared/database.py",
        "setattr(wrapped, _OURS, broke)",
        "setattr(wrapped, _OURS, False)",
        TRANSACT + "test_a_connection_that_breaks_under_it_is_ours",
    ),
    Mutation(
        "a thread whose second run knows nothing of the first",
        "shared/runs/claim.py",
        "claimed.seq == FIRST_SEQ",
        "claimed.seq <= FIRST_SEQ + 1",
        CANCELLING + "test_a_running_run_is_cancelled_by_its_worker_with_what_it_had",
    ),
    Mutation(
        "an end that is waited for without Redis",
        "worker/publisher.py",
        "                _give_up(ends, away)\n",
        "",
        "tests/test_publisher.py::test_an_end_that_cannot_be_told_holds_nobody_up",
    ),
]
