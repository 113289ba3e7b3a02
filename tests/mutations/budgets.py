"""Everything that buffers has a budget: outputs, results of tools, histories, partials, entries, log lines."""

from tests.mutations.mutation import Mutation

LARGE = "tests/test_large_runs.py::"

MUTATIONS = [
    Mutation(
        "partial outputs of any size",
        "worker/answer.py",
        "            self._budget.check_output(text)\n            self._listener.show(text)\n",
        "            self._listener.show(text)\n",
        LARGE + "test_an_output_without_end_ends_the_run_at_once",
    ),
    Mutation(
        "an output measured in characters",
        "worker/budget.py",
        "or len_utf8(text) > most)",
        "or len(text) > most)",
        LARGE + "test_a_length_alone_decides_nearly_always",
    ),
    Mutation(
        "a response without end that is never valid",
        "worker/answer.py",
        "            self._budget.check_written(written)\n",
        "",
        LARGE + "test_a_response_that_is_never_valid_ends_too",
    ),
    Mutation(
        "results of tools of any size",
        "worker/answer.py",
        "                        self._budget.check_results(node.request)\n",
        "                        pass\n",
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
        "worker/history.py",
        "    if size > most_bytes:\n",
        "    if size < 0:\n",
        LARGE + "test_a_transcript_that_is_too_large_is_stored_without_its_largest_results",
    ),
]
