"""What is promised of AG-UI, broken one by one."""

from tests.mutations.mutation import Mutation

CLIENT = "tests/acceptance/test_ag_ui.py::"
RENDERER = "tests/unit/api/protocols/ag_ui/test_renderer.py::"

MUTATIONS = [
    Mutation(
        "messages of AG-UI that keep what a lost attempt wrote",
        "api/protocols/ag_ui/renderer.py",
        'return ended + (self._snapshot() if is_void else b"")',
        "return ended",
        RENDERER + "test_a_new_attempt_takes_back_what_is_void_and_nothing_else",
    ),
    Mutation(
        "a stream of AG-UI that is told again beside what its client has",
        "api/protocols/ag_ui/renderer.py",
        'return started + (self._snapshot() if self._begins_anew else b"")',
        "return started",
        CLIENT + "test_a_stream_that_broke_off_is_resumed_by_the_same_call",
    ),
    Mutation(
        "a thread of AG-UI that another user of the same name for it gets into",
        "api/protocols/ag_ui/threads.py",
        'f"{caller.user_id} {thread_id}"',
        "thread_id",
        CLIENT + "test_the_same_run_is_followed_again_and_asks_nothing_again",
    ),
    Mutation(
        "a run of AG-UI that is taken for one with other files",
        "api/protocols/ag_ui/routes.py",
        "        if not same or not await are_attached(database, before.id, wanted.files):\n",
        "        if not same:\n",
        CLIENT + "test_files_of_the_last_message_are_given_to_the_agent",
    ),
]
