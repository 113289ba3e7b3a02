"""What is promised on a network with slow and hostile peers, broken one by one."""

from tests.mutations.mutation import Mutation

TESTS = "tests/acceptance/test_connections.py::"
KEYS = "tests/acceptance/test_api_keys.py::"
LIMITS = "tests/acceptance/test_rate_limits.py::"
TURNS = "tests/unit/api/server/test_turns.py::"
OF_PROTOCOL = "tests/unit/api/server/test_http_protocol.py::"
PROTOCOL = "api/server/http_protocol.py"
CONNECTIONS = "api/server/connections.py"

MUTATIONS = [
    Mutation(
        "a trailer that counts as a header",
        PROTOCOL,
        "        if self._in_head:\n            super().on_header(name, value)\n            return\n",
        "        super().on_header(name, value)\n",
        TESTS + "test_a_key_in_a_trailer_opens_nothing",
    ),
    Mutation(
        "any number of connections to a worker's metrics",
        "shared/metrics.py",
        "threading.BoundedSemaphore(MOST_CONNECTIONS)",
        "threading.BoundedSemaphore(1_000)",
        "tests/acceptance/test_metrics.py::test_slow_and_many_scrapers_leave_the_worker_its_time",
    ),
    Mutation(
        "a chunk extension without an end",
        PROTOCOL,
        "            raise _Refuse(_TOO_MUCH_FRAMING)\n",
        "            return\n",
        TESTS + "test_nothing_is_read_without_end[chunk extension]",
    ),
    Mutation(
        "any number of chunks of a byte",
        PROTOCOL,
        "OVERHEAD_BYTES, OVERHEAD_RATIO = 64 << 10, 2",
        "OVERHEAD_BYTES, OVERHEAD_RATIO = 64 << 10, 16",
        TESTS + "test_a_body_of_many_chunks_of_a_byte_is_refused",
    ),
    Mutation(
        "any number of pipelined requests",
        PROTOCOL,
        "if len(self.pipeline) >= MOST_PIPELINED:",
        "if len(self.pipeline) >= 100_000:",
        TESTS + "test_pipelined_requests_are_answered_up_to_a_limit",
    ),
    Mutation(
        "a head that may take any time",
        CONNECTIONS,
        "if now - since > self._request_seconds]",
        "if now - since > 3600]",
        TESTS + "test_a_request_that_arrives_too_slowly_is_answered_with_408[half a head]",
    ),
    Mutation(
        "a body that may take any time",
        CONNECTIONS,
        "        elif now - body.since > self._request_seconds:",
        "        elif now - body.since > 3600:",
        TESTS + "test_a_request_that_arrives_too_slowly_is_answered_with_408[half a body]",
    ),
    Mutation(
        "no room for new connections once silent ones fill it",
        CONNECTIONS,
        "        if (silent := next(iter(self._headless))) is not connection:",
        "        if (silent := next(iter(self._headless))) is None:",
        TESTS + "test_silent_connections_keep_nobody_out",
    ),
    Mutation(
        "a full process that refuses questions about its health",
        PROTOCOL,
        ".startswith(HEALTH):",
        '.startswith("/nothing"):',
        TESTS + "test_a_full_process_refuses_with_a_reason_and_answers_about_its_health",
    ),
    Mutation(
        "a user with all the streams of a process",
        "api/requests/rate_limits.py",
        "            if limit and self._counts[name] >= limit:",
        "            if limit and not name and self._counts[name] >= limit:",
        LIMITS + "test_open_streams_and_waits_are_counted_and_given_back",
    ),
    Mutation(
        "a stream that keeps its room after its end",
        "api/streaming/response.py",
        "            self._call.close()",
        "            pass",
        LIMITS + "test_open_streams_and_waits_are_counted_and_given_back",
    ),
    Mutation(
        "a user that may send any number of requests",
        "api/requests/rate_limits.py",
        "        if tightest.left < 1:",
        "        if tightest.left < -1_000_000:",
        LIMITS + "test_a_caller_that_sends_too_much_is_slowed_down_alone",
    ),
    Mutation(
        "batches that may fill the disk",
        "shared/batches/spool.py",
        "        if size > self.left:",
        "        if size < 0:",
        LIMITS + "test_the_room_on_disk_is_limited_and_given_back",
    ),
    Mutation(
        "a turn of the loop that takes in all that has arrived",
        "api/server/turns.py",
        "        if self._taken >= self._at_once:\n",
        "        if False:\n",
        TURNS + "test_a_turn_has_so_many_places_and_the_next_one_as_many",
    ),
    Mutation(
        "connections that overtake those that wait for a turn",
        "api/server/turns.py",
        "            self._waiting.popleft()()\n",
        "            self._waiting.pop()()\n",
        TURNS + "test_what_waits_is_called_in_its_order_a_few_a_turn",
    ),
    Mutation(
        "a connection that is read on although what it sent waits for a turn",
        PROTOCOL,
        "        self._held.append(data)\n        self.transport.pause_reading()\n",
        "        self._held.append(data)\n",
        OF_PROTOCOL + "test_it_is_taken_in_later_and_nothing_more_is_read_until_then",
    ),
    Mutation(
        "a request of a lost connection that is begun all the same",
        PROTOCOL,
        "        self._held.clear()\n        if not self.transport.is_closing():\n",
        "        self._held.clear()\n        if True:\n",
        OF_PROTOCOL + "test_what_a_lost_connection_sent_is_dropped_and_its_end_is_told_in_order",
    ),
    Mutation(
        "a process that listens before it knows its keys",
        "api/app.py",
        "            await keys.first_read.wait()",
        "            pass",
        KEYS + "test_a_process_listens_when_it_knows_its_keys",
    ),
    Mutation(
        "a revoked key whose streams go on",
        "api/requests/key_cache.py",
        "        self._revoked(key.reference)",
        "        pass",
        KEYS + "test_a_revoked_key_opens_nothing_and_its_streams_end",
    ),
    Mutation(
        "a key of one scope that does everything",
        "shared/api_keys.py",
        "return self.scopes is None or not self.scopes.isdisjoint(scopes)",
        "return True",
        KEYS + "test_a_scope_allows_its_calls_and_no_others[read]",
    ),
    Mutation(
        "a ticket that outlives its key",
        "api/requests/identity.py",
        "    if key is None or key.tenant != run.tenant or is_void:",
        "    key = key or ApiKey(run.tenant, b'')\n    if key.tenant != run.tenant or is_void:",
        KEYS + "test_a_revoked_key_opens_nothing_and_its_streams_end",
    ),
    Mutation(
        "a ticket that opens every stream",
        "api/requests/tickets.py",
        'b"stream ticket 2\\0" + run_id.bytes + claims',
        'b"stream ticket 2\\0" + claims',
        KEYS + "test_a_ticket_is_one_string_and_no_other",
    ),
    Mutation(
        "a key of one agent that asks another in a thread",
        "shared/runs/accept.py",
        "_place_in_thread(connection, asked, later=later)\n        _check_agent(asked, agent_type)\n",
        "_place_in_thread(connection, asked, later=later)\n",
        KEYS + "test_a_key_asks_its_agents_only",
    ),
]
