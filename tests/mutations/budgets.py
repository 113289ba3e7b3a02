"""Everything that buffers has a budget: outputs, results of tools, histories, partials, entries, log lines."""

from tests.mutations.mutation import Mutation

LARGE = "tests/acceptance/test_large_runs.py::"
LOGS = "tests/unit/shared/test_logs.py::"
KEEPING = "tests/integration/worker/execution/test_kept_partials.py::"
WEBHOOKS = "tests/acceptance/test_webhooks.py::"

MUTATIONS = [
    Mutation(
        "partial outputs of any size",
        "worker/execution/answer.py",
        "            text = self._render(partial, partial=True)\n            self._budget.check_output(text)\n",
        "            text = self._render(partial, partial=True)\n",
        LARGE + "test_an_output_without_end_ends_the_run_at_once",
    ),
    Mutation(
        "an output measured in characters",
        "worker/execution/size_limits.py",
        "or len_utf8(text) > most)",
        "or len(text) > most)",
        LARGE + "test_a_length_alone_decides_nearly_always",
    ),
    Mutation(
        "a response without end that is never valid",
        "worker/execution/answer.py",
        "            self._budget.check_written(written)\n",
        "",
        LARGE + "test_a_response_that_is_never_valid_ends_too",
    ),
    Mutation(
        "results of tools of any size",
        "worker/execution/answer.py",
        "                    self._budget.check_results(node.request)\n",
        "                    pass\n",
        LARGE + "test_a_tool_result_that_is_too_large_ends_the_run_with_a_sentence",
    ),
    Mutation(
        "a history that is cut at its end",
        "shared/runs/claim.py",
        "OVER (ORDER BY seq DESC)",
        "OVER (ORDER BY seq)",
        LARGE + "test_the_history_is_measured_before_it_is_read",
    ),
    Mutation(
        "a transcript of any size",
        "worker/execution/history.py",
        "    if size > most_bytes:\n",
        "    if size < 0:\n",
        LARGE + "test_a_transcript_that_is_too_large_is_stored_without_its_largest_results",
    ),
    Mutation(
        "a heartbeat that stores every text at once",
        "worker/execution/kept_partials.py",
        "            if sizes[run_id] <= room:\n",
        "            if sizes[run_id] >= 0:\n",
        KEEPING + "test_large_texts_are_stored_in_turn_and_small_ones_each_time",
    ),
    Mutation(
        "a large text that is never stored beside small ones",
        "worker/execution/kept_partials.py",
        "key=lambda run_id: sizes[run_id] / waited[run_id])",
        "key=lambda run_id: sizes[run_id])",
        KEEPING + "test_large_texts_are_stored_in_turn_and_small_ones_each_time",
    ),
    Mutation(
        "usage that waits for its text",
        "worker/execution/kept_partials.py",
        "else self._usage_of(run) for run in changed]",
        "else Kept(self._rows.get(run.run_id, run), with_text=False) for run in changed]",
        KEEPING + "test_the_usage_of_a_text_that_waits_is_stored_and_its_entry_is_not",
    ),
    Mutation(
        "partials that take as long as the lease",
        "worker/execution/lease.py",
        "min(STATEMENT_SECONDS, settings.lease_seconds / 6)",
        "STATEMENT_SECONDS",
        KEEPING + "test_a_heartbeat_that_cannot_keep_partials_renews_the_lease",
    ),
    Mutation(
        "a round trip of any size",
        "worker/execution/publisher.py",
        "            elif not sending or append.length <= room:\n",
        "            elif append.length >= 0:\n",
        KEEPING + "test_a_round_trip_carries_little_and_a_large_text_holds_up_nobody",
    ),
    Mutation(
        "an entry of any size",
        "worker/execution/publisher.py",
        "            if append.length > LARGEST_TEXT_BYTES:\n",
        "            if append.length < 0:\n",
        KEEPING + "test_a_round_trip_carries_little_and_a_large_text_holds_up_nobody",
    ),
    Mutation(
        "a signature of every secret",
        "shared/webhooks/secret.py",
        "    ORDER BY number DESC LIMIT 2\n",
        "    ORDER BY number DESC\n",
        WEBHOOKS + "test_secrets_that_were_made_before_there_was_this_limit_sign_twice_at_most",
    ),
    Mutation(
        "rotations without a pause",
        "shared/webhooks/secret.py",
        "row.rotated_seconds_ago < ROTATION_SECONDS:",
        "row.rotated_seconds_ago < 0:",
        WEBHOOKS + "test_a_secret_is_rotated_once_a_minute",
    ),
    Mutation(
        "values that begin a line of the log",
        "shared/logs.py",
        "        line = _line(super().formatMessage(record))\n",
        "        line = super().formatMessage(record)\n",
        LOGS + "test_a_value_cannot_begin_a_line",
    ),
    Mutation(
        "tracebacks that look like records",
        "shared/logs.py",
        'f"  {_line(line)}" for line in lines',
        "_line(line) for line in lines",
        LOGS + "test_no_line_of_a_traceback_looks_like_a_record",
    ),
    Mutation(
        "values that keep out what a line is about",
        "shared/logs.py",
        'f" {name}=" not in template',
        'f" {name}=" not in line',
        LOGS + "test_a_value_cannot_keep_out_what_the_line_is_about",
    ),
]
