"""What HTTP clients of every kind may expect, broken one by one."""

from tests.mutations.mutation import Mutation

TESTS = "tests/test_http_edges.py::"

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
]
