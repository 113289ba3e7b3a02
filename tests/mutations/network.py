"""What is promised on a network with slow and hostile peers, broken one by one."""

from tests.mutations.mutation import Mutation

TESTS = "tests/test_connections.py::"
KEYS = "tests/test_api_keys.py::"
LIMITS = "tests/test_limits.py::"
PROTOCOL = "api/protocol.py"
CONNECTIONS = "api/connections.py"

MUTATIONS = [
    Mutation(
        "a trailer that counts as a header",
        PROTOCOL,
        "        if self._in_head:\n            super().on_header(name, value)\n            return\n",
        "        super().on_header(name, value)\n",
        TESTS + "test_a_key_in_a_trailer_opens_nothing",
    ),
    Mutation(
        "a chunk extension without an end",
        PROTOCOL,
        "            raise _Refuse(_TOO_MUCH_FRAMING)\n",
        "            return\n",
        TESTS + "test_nothing_is_read_without_end[chunk extension]",
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
        "api/limits.py",
        "            if limit and self._counts[name] >= limit:",
        "            if limit and not name and self._counts[name] >= limit:",
        LIMITS + "test_open_streams_and_waits_are_counted_and_given_back",
    ),
    Mutation(
        "a stream that keeps its room after its end",
        "api/stream.py",
        "            self._call.close()",
        "            pass",
        LIMITS + "test_open_streams_and_waits_are_counted_and_given_back",
    ),
    Mutation(
        "a user that may send any number of requests",
        "api/limits.py",
        "        if tightest.left < 1:",
        "        if tightest.left < -1_000_000:",
        LIMITS + "test_a_caller_that_sends_too_much_is_slowed_down_alone",
    ),
    Mutation(
        "batches that may fill the disk",
        "shared/batches/manifest.py",
        "        if size > self.left:",
        "        if size < 0:",
        LIMITS + "test_the_room_on_disk_is_limited_and_given_back",
    ),
    Mutation(
        "a revoked key whose streams go on",
        "api/key_ring.py",
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
        "api/tickets.py",
        "        if key is None or expires_at <= now():",
        "        key = key or ApiKey('acme', b'')\n        if expires_at <= now():",
        KEYS + "test_a_revoked_key_opens_nothing_and_its_streams_end",
    ),
    Mutation(
        "a ticket that opens every stream",
        "api/tickets.py",
        'b"stream ticket 2\\0" + run_id.bytes + claims',
        'b"stream ticket 2\\0" + claims',
        KEYS + "test_a_ticket_is_one_string_and_no_other",
    ),
    Mutation(
        "a key of one agent that asks another in a thread",
        "shared/runs/accept.py",
        "        agent_type, seq = thread.agent_type, thread.last_seq\n        _check_agent(asked, agent_type)\n",
        "        agent_type, seq = thread.agent_type, thread.last_seq\n",
        KEYS + "test_a_key_asks_its_agents_only",
    ),
]
