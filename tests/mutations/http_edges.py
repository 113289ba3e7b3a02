"""What HTTP clients of every kind may expect, broken one by one."""

from tests.mutations.mutation import Mutation

TESTS = "tests/acceptance/test_http_edges.py::"
PLAIN = "tests/acceptance/test_plain_requests.py::"
QUIET = "tests/acceptance/test_quiet_logs.py::"
HEADERS = "tests/acceptance/test_headers.py::"
CONNECTIONS = "tests/acceptance/test_connections.py::"

MUTATIONS = [
    Mutation(
        "a refusal that does not say how many requests are left",
        "api/requests/validation.py",
        "    request.scope[HEADERS_OF_CALLER] = headers\n",
        "",
        "tests/acceptance/test_rate_limits.py::test_a_refusal_says_how_many_requests_are_left",
    ),
    Mutation(
        "a response to a peer that has gone, in a pipeline",
        "api/server/http_protocol.py",
        "        if self.transport.is_closing():\n            self.disconnected = True\n",
        "        if False:\n            self.disconnected = True\n",
        CONNECTIONS + "test_a_reader_that_goes_away_is_no_error",
    ),
    Mutation(
        "a request that is refused again when its time is over",
        "api/server/http_protocol.py",
        "        self.connections_of_process.complete(self)  # Nothing of it is waited for: it is refused once.\n",
        "",
        CONNECTIONS + "test_the_clocks_go_on_after_a_request_that_was_refused",
    ),
    Mutation(
        "a pipeline that ends with the response before the last",
        "api/server/http_protocol.py",
        "isinstance(self.cycle, LastCycle) and self.cycle.response_complete  #",
        "isinstance(self.cycle, LastCycle)  #",
        HEADERS + "test_two_in_a_pipeline_have_them_each",
    ),
    Mutation(
        "a redirect without the headers of every response",
        "api/app.py",
        """    if settings.root_path:
        app.add_middleware(RootPath, root_path=settings.root_path)
    app.add_middleware(RequestId)
""",
        """    app.add_middleware(RequestId)
    if settings.root_path:
        app.add_middleware(RootPath, root_path=settings.root_path)
""",
        HEADERS + "test_a_response_has_them_whoever_writes_it",
    ),
    Mutation(
        "chunks for HTTP/1.0",
        "api/server/http_protocol.py",
        "self._ends_with_connection, self.chunked_encoding = True, False",
        "pass",
        TESTS + "test_http_1_0_gets_a_stream_without_chunks",
    ),
    Mutation(
        "a connection closed on a client that still sends",
        "api/server/http_protocol.py",
        "self.keep_alive = True  # `on_response_complete` of the protocol closes it.",
        "pass",
        TESTS + "test_an_answer_that_comes_early_is_not_lost",
    ),
    Mutation(
        "a root path that is taken off wherever a path begins so",
        "api/server/root_path.py",
        "if rest == path or not _is_ours(rest):",
        "if rest == path:",
        TESTS + "test_behind_a_prefix_every_reference_leads_back",
    ),
    Mutation(
        "references that leave the prefix out",
        "api/dependencies.py",
        'lambda noun, id_: f"{root_path}/api/v1/{noun}/{id_}"',
        'lambda noun, id_: f"{root_path[:0]}/api/v1/{noun}/{id_}"',
        TESTS + "test_behind_a_prefix_every_reference_leads_back",
    ),
    Mutation(
        "a byte order mark taken for an item",
        "api/batches/upload.py",
        "cutter.feed(chunk.removeprefix(mark))",
        "cutter.feed(chunk)",
        TESTS + "test_a_byte_order_mark_before_a_batch_is_skipped",
    ),
    Mutation(
        "a webhook that hears nothing before it has said everything",
        "worker/webhooks.py",
        "transport=TwoWayTransport(),",
        "transport=httpx2.AsyncHTTPTransport(),",
        "tests/acceptance/test_webhooks.py::test_an_answer_before_the_end_of_a_large_body_counts[410-disabled-plain-closes]",
    ),
    Mutation(
        "an answer that is lost with the connection that was reset",
        "worker/models/duplex_http.py",
        "if left := self._kept.recv(max_bytes, socket.MSG_DONTWAIT):",
        "if left := b'':",
        "tests/unit/worker/models/test_duplex_http.py::test_an_answer_is_heard_after_a_write_that_failed",
    ),
    Mutation(
        "two hosts taken for one",
        "api/server/http_protocol.py",
        "if len(hosts) > 1 or (not hosts",
        "if (not hosts",
        PLAIN + "test_a_head_that_others_may_read_differently_is_refused",
    ),
    Mutation(
        "responses that say nothing to browsers",
        "api/request_id.py",
        "security_headers.complete(message)",
        "pass",
        PLAIN + "test_answers_to_a_user_say_what_browsers_and_caches_may_do",
    ),
    Mutation(
        "a cursor that is good for everybody",
        "api/requests/pagination.py",
        'owner = "operator" if caller is None else f"{caller.tenant} {caller.user_id}"',
        'owner = "" if caller is None else ""',
        PLAIN + "test_a_cursor_is_of_its_list_and_its_user",
    ),
    Mutation(
        "a cursor that anybody can make",
        "api/requests/pagination.py",
        'if not hmac.compare_digest(self._write(values).encode(), self._given.encode(errors="replace")):',
        "if not values:",
        PLAIN + "test_a_cursor_that_was_changed_or_made_up_is_refused",
    ),
    Mutation(
        "numbers as pydantic reads them",
        "api/requests/validation.py",
        "if plain is not None and not plain.fullmatch(value):",
        "if plain is not None and not value:",
        PLAIN + "test_a_whole_number_is_written_in_plain_digits",
    ),
    Mutation(
        "a key for each spelling of a path",
        "api/server/root_path.py",
        'return path.removeprefix(request.scope.get("root_path", "")).lower()',
        "return path",
        PLAIN + "test_the_same_call_by_another_spelling_of_its_path_creates_once",
    ),
    Mutation(
        "an error of the database that quotes a row",
        "shared/database/engine.py",
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
