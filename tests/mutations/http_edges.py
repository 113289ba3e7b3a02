"""What HTTP clients of every kind may expect, broken one by one."""

from tests.mutations.mutation import Mutation

TESTS = "tests/test_http_edges.py::"
PLAIN = "tests/test_plain_requests.py::"
QUIET = "tests/test_quiet_logs.py::"

MUTATIONS = [
    Mutation(
        "chunks for HTTP/1.0",
        "api/protocol.py",
        "self._ends_with_connection, self.chunked_encoding = True, False",
        "pass",
        TESTS + "test_http_1_0_gets_a_stream_without_chunks",
    ),
    Mutation(
        "a connection closed on a client that still sends",
        "api/protocol.py",
        "self.keep_alive = True  # `on_response_complete` of the protocol closes it.",
        "pass",
        TESTS + "test_an_answer_that_comes_early_is_not_lost",
    ),
    Mutation(
        "a root path that is taken off wherever a path begins so",
        "api/root_path.py",
        'if rest == path or rest[1:].partition("/")[0] not in FIRST_STEPS:',
        "if rest == path:",
        TESTS + "test_behind_a_prefix_every_reference_leads_back",
    ),
    Mutation(
        "references that leave the prefix out",
        "api/dependencies.py",
        'return f"{self.settings.root_path}/api/v1/{noun}/{id_}"',
        'return f"/api/v1/{noun}/{id_}"',
        TESTS + "test_behind_a_prefix_every_reference_leads_back",
    ),
    Mutation(
        "a byte order mark taken for an item",
        "api/batches/intake.py",
        "cutter.feed(chunk.removeprefix(mark))",
        "cutter.feed(chunk)",
        TESTS + "test_a_byte_order_mark_before_a_batch_is_skipped",
    ),
    Mutation(
        "a webhook that hears nothing before it has said everything",
        "worker/courier.py",
        "transport=TwoWayTransport(),",
        "transport=httpx2.AsyncHTTPTransport(),",
        "tests/test_webhooks.py::test_an_answer_before_the_end_of_a_large_body_counts[410-disabled-plain-closes]",
    ),
    Mutation(
        "two hosts taken for one",
        "api/protocol.py",
        "if len(hosts) > 1 or (not hosts",
        "if (not hosts",
        PLAIN + "test_a_head_that_others_may_read_differently_is_refused",
    ),
    Mutation(
        "responses that say nothing to browsers",
        "api/request_id.py",
        "safe_headers.complete(message)",
        "pass",
        PLAIN + "test_answers_to_a_user_say_what_browsers_and_caches_may_do",
    ),
    Mutation(
        "a cursor that is good for everybody",
        "api/pages.py",
        'owner = "operator" if caller is None else f"{caller.tenant} {caller.user_id}"',
        'owner = "" if caller is None else ""',
        PLAIN + "test_a_cursor_is_of_its_list_and_its_user",
    ),
    Mutation(
        "a cursor that anybody can make",
        "api/pages.py",
        'if not hmac.compare_digest(self._write(values).encode(), self._given.encode(errors="replace")):',
        "if not values:",
        PLAIN + "test_a_cursor_that_was_changed_or_made_up_is_refused",
    ),
    Mutation(
        "numbers as pydantic reads them",
        "api/strict.py",
        "if plain is not None and not plain.fullmatch(value):",
        "if plain is not None and not value:",
        PLAIN + "test_a_whole_number_is_written_in_plain_digits",
    ),
    Mutation(
        "a key for each spelling of a path",
        "api/root_path.py",
        'return path.removeprefix(request.scope.get("root_path", "")).lower()',
        "return path",
        PLAIN + "test_the_same_call_by_another_spelling_of_its_path_creates_once",
    ),
    Mutation(
        "an error of the database that quotes a row",
        "shared/database.py",
        "        leave_out_values(error)\n        if (wrapped",
        "        if (wrapped",
        QUIET + "test_an_error_of_the_database_quotes_no_value",
    ),
    Mutation(
        "a line that quotes what pydantic refused",
        "shared/logs.py",
        "line = secret.sub(instead, line)",
        "pass",
        QUIET + "test_a_line_quotes_nothing_that_pydantic_refused",
    ),
]
