"""What is promised of the AI SDK's protocol, broken one by one."""

from tests.mutations.mutation import Mutation

CLIENT = "tests/acceptance/test_ai_sdk.py::"
RENDERER = "tests/unit/api/protocols/ai_sdk/test_renderer.py::"
FOLLOWER = "tests/unit/api/streaming/test_follower.py::"

MUTATIONS = [
    Mutation(
        "a UI message that keeps what a lost attempt wrote",
        "api/protocols/ai_sdk/renderer.py",
        'return b"" if step is None or step.is_empty else self._take_back(())',
        'return b""',
        RENDERER + "test_what_a_lost_attempt_wrote_is_taken_back",
    ),
    Mutation(
        "a chat that another user of the same name for it gets into",
        "api/protocols/ai_sdk/chats.py",
        'f"{caller.user_id} {chat_id}"',
        "chat_id",
        CLIENT + "test_the_chats_of_others_are_not_there",
    ),
    Mutation(
        "a UI message stream that is cut and looks complete",
        "api/protocols/ai_sdk/routes.py",
        "until_waiting=True, breaks_off=True, ",
        "until_waiting=True, ",
        CLIENT + "test_an_answer_whose_api_process_ends_is_resumed_at_another",
    ),
    Mutation(
        "a stream after answers that ends before what comes of them",
        "api/streaming/response.py",
        " and feed.top != self._began_at",
        "",
        FOLLOWER + "test_a_reader_who_goes_on_after_a_pause_waits_for_what_comes_after_it",
    ),
    Mutation(
        "a file of the AI SDK's that is taken and never given to the agent",
        "api/protocols/ai_sdk/requests.py",
        '                files.append(_file(part, f"{asked.pointer}/parts/{number}", url_of_file))\n',
        '                _file(part, f"{asked.pointer}/parts/{number}", url_of_file)\n',
        CLIENT + "test_a_message_with_files_is_asked_once_and_edited_with_its_id",
    ),
    Mutation(
        "a file that a lost attempt has made, and that another one makes again, never shown",
        "api/protocols/ai_sdk/renderer.py",
        "            step.native_calls.add(file_id)\n",
        "            pass\n",
        RENDERER + "test_a_file_of_a_response_that_is_void_is_taken_back_and_made_again",
    ),
]
