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
        "a state of AG-UI that is patched as if the attempt before still counted",
        "api/protocols/ag_ui/renderer.py",
        "        self._shown = None\n        if",
        "        if",
        RENDERER + "test_only_what_changes_of_a_structured_output_is_told_and_a_new_attempt_begins_with_the_whole",
    ),
    Mutation(
        "a patch of AG-UI's state that takes true for 1",
        "api/protocols/ag_ui/json_patch.py",
        "if to_json(equal[0]) == to_json(equal[1]):",
        "if equal[0] == equal[1]:",
        "tests/unit/api/protocols/ag_ui/test_json_patch.py::test_the_sum_of_the_patches_is_the_last_state",
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
