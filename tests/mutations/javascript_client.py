"""What the JavaScript client promises, broken one by one."""

from tests.mutations.mutation import Mutation

CLIENT = "tests/acceptance/test_javascript_client.py::"

MUTATIONS = [
    Mutation(
        "a client that begins again where a connection broke",
        "clients/js/src/connection.ts",
        "`${path}&after=${encodeURIComponent(after)}`",
        "path",
        CLIENT + "test_it_goes_on_whatever_the_network_does",
    ),
    Mutation(
        "a client that keeps the answer of an attempt that is void",
        "clients/js/src/progress.ts",
        'this.#take(""); // What came before is void.',
        "// What came before is void.",
        CLIENT + "test_its_answers_are_whole_whatever_dies",
    ),
    Mutation(
        "a client that takes a cut for the end",
        "clients/js/src/connection.ts",
        "if (response.status === 204 || response.body === null) return; // The cursor is at the very end.",
        "if (response.status === 204 || response.body === null || cursor()) return;",
        CLIENT + "test_its_answers_are_whole_whatever_dies",
    ),
    Mutation(
        "types of an API that has changed since",
        "api/streaming/event_schemas.py",
        '"""Whether it had begun to answer."""',
        '"""Whether it had a beginning."""',
        CLIENT + "test_its_types_are_those_of_the_document",
    ),
    Mutation(
        "an event that the document does not describe",
        "api/streaming/run_feed.py",
        '"message_complete": (("usage",), ()),',
        '"message_complete": (("usage", "last"), ()),',
        "tests/acceptance/test_openapi.py::test_events_are_as_documented",
    ),
]
