"""What the command-line client promises, broken one by one."""

from tests.mutations.mutation import Mutation

TESTS = "tests/acceptance/test_command_line.py::"

MUTATIONS = [
    Mutation(
        "a submission that is noted only once it was accepted",
        "client/submit.py",
        "            submission = Submission.new(asked)\n            submission.save(order.kept)\n",
        "            submission = Submission.new(asked)\n",
        TESTS + "test_a_client_that_died_before_it_knew_submits_once",
    ),
    Mutation(
        "a key for every try",
        "client/connection.py",
        "content=chunks(), headers=headers,",
        'content=chunks(), headers={**headers, "Idempotency-Key": f"{key}-{self._tries}"},',
        TESTS + "test_a_submission_whose_reply_was_lost_is_one_batch",
    ),
    Mutation(
        "an answer asked for twice",
        "client/connection.py",
        "self._http.post(path, json=body, headers=headers)",
        "self._http.post(path, json=body)",
        TESTS + "test_an_answer_survives_its_connections",
    ),
    Mutation(
        "a torn line that stays",
        "client/results_file.py",
        "        self._file.truncate(end)\n",
        "",
        TESTS + "test_results_that_somebody_removed_come_again",
    ),
    Mutation(
        "results from the start, whatever is there",
        "client/submit.py",
        '"after": results.cursor',
        '"after": None',
        TESTS + "test_results_that_somebody_removed_come_again",
    ),
    Mutation(
        "an output of something else, written over",
        "client/results_file.py",
        "        if os.fstat(self._file.fileno()).st_size:\n",
        "        if not os.fstat(self._file.fileno()).st_size and self.count:\n",
        TESTS + "test_other_rows_or_an_output_of_something_else_are_left_alone",
    ),
    Mutation(
        "an output with two writers",
        "client/results_file.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        TESTS + "test_ctrl_c_leaves_the_batch_alone_and_says_how_to_cancel",
    ),
    Mutation(
        "a stream that was cut, taken for one that ended",
        "client/connection.py",
        '                trouble = _Passing("The stream was cut", expected=True)\n',
        "                return\n",
        TESTS + "test_later_is_waited_for_and_a_stream_without_its_end_resumed",
    ),
    Mutation(
        "an answer from the start, whatever was shown",
        "client/ask.py",
        '"after": answer.last_id',
        '"after": None',
        TESTS + "test_later_is_waited_for_and_a_stream_without_its_end_resumed",
    ),
    Mutation(
        "Retry-After not listened to",
        "client/connection.py",
        "float(after) if _SECONDS.fullmatch(after) else None",
        "None",
        TESTS + "test_later_is_waited_for_and_a_stream_without_its_end_resumed",
    ),
    Mutation(
        "a full service waited for without an end",
        "client/connection.py",
        "patience = inf if self._longest_wait is None else self._longest_wait",
        "patience = inf",
        TESTS + "test_a_service_that_stays_full_is_waited_for_as_long_as_one_likes",
    ),
    Mutation(
        "a terminal that obeys the answer",
        "client/terminal.py",
        'return _OBEYED.sub("\\N{REPLACEMENT CHARACTER}", text)',
        "return text",
        TESTS + "test_a_terminal_shows_the_answer_growing_and_obeys_none_of_it",
    ),
    Mutation(
        "a client that needs the server's packages",
        "client/errors.py",
        "from typing import Any\n",
        "from typing import Any\n\nimport pydantic\n",
        TESTS + "test_it_needs_nothing_but_httpx_and_rich",
    ),
    Mutation(
        "a cell that a spreadsheet runs",
        "client/results_table.py",
        'return f"\'{text}" if _FORMULA',
        "return text if _FORMULA",
        "tests/acceptance/test_files_and_terminals.py::test_no_cell_is_a_formula",
    ),
    Mutation(
        "half a file taken for the whole",
        "client/input_source.py",
        "            if _identity(os.fstat(file.fileno())) != _identity(before):\n",
        "            if not before:\n",
        "tests/acceptance/test_files_and_terminals.py::test_a_file_that_changes_while_it_is_read_is_refused",
    ),
    Mutation(
        "an answer for nobody, taken for one that was read",
        "client/__main__.py",
        "        return UNREAD\n",
        "        return SUCCEEDED\n",
        "tests/acceptance/test_files_and_terminals.py::test_an_answer_that_cannot_be_written_is_an_error",
    ),
]
