"""What is promised of OpenAI's protocol, broken one by one."""

from tests.mutations.mutation import Mutation

CLIENT = "tests/acceptance/test_openai.py::"
FILES = "tests/acceptance/test_openai_files.py::"
UNIT = "tests/unit/api/protocols/openai/"

MUTATIONS = [
    Mutation(
        "a completion that is cut and looks complete",
        "api/protocols/openai/chat.py",
        "until_waiting=True, breaks_off=True, ",
        "until_waiting=True, ",
        CLIENT + "test_a_stream_whose_api_process_stops_looks_complete_to_no_client",
    ),
    Mutation(
        "an agent that is not told the conversation that its caller holds",
        "worker/execution/history.py",
        "    history += map(_said, before)\n",
        "",
        CLIENT + "test_the_model_knows_the_conversation_that_the_caller_holds_and_nothing_of_it_is_a_thread",
    ),
    Mutation(
        "a streamed text that goes on from another one",
        "api/protocols/openai/growing_text.py",
        "        if not text.startswith(self.sent):\n",
        "        if False:\n",
        UNIT + "test_chat_renderer.py::test_a_new_attempt_goes_on_after_what_was_sent_unless_it_says_the_same",
    ),
    Mutation(
        "a structured output that is streamed before it is whole",
        "api/protocols/openai/chat_renderer.py",
        " if self._streams else b",
        " if True else b",
        UNIT + "test_chat_renderer.py::test_a_structured_output_comes_whole_at_its_end",
    ),
    Mutation(
        "a response that goes on in the item of an attempt that is lost",
        "api/protocols/openai/response_renderer.py",
        '            case "message_started":\n                self._close(INCOMPLETE)\n',
        '            case "message_started":\n',
        UNIT + "test_response_renderer.py::test_a_new_attempt_closes_the_item_of_the_one_before_and_grows_in_its_own",
    ),
    Mutation(
        "a reader of a response whose text nobody remembers, and who is sent all of it again",
        "api/protocols/openai/responses.py",
        "    return text_at(entries, seen.id)\n",
        "    return None\n",
        CLIENT + "test_a_response_in_the_background_is_read_on_from_any_event_after_its_api_was_killed",
    ),
    Mutation(
        "a response that goes on from another one, and knows what came after that",
        "shared/runs/accept.py",
        "    if last != asked.after_run:\n",
        "    if False:\n",
        CLIENT + "test_a_response_goes_on_from_another_one_and_forks_where_that_is_not_the_last",
    ),
    Mutation(
        "a setting of the caller's that is taken and means nothing",
        "api/protocols/openai/parameters.py",
        "        if value is not None and not any(",
        "        if False and not any(",
        CLIENT + "test_what_an_agent_cannot_follow_is_refused_by_its_name",
    ),
    Mutation(
        "a file that is taken and never given to the agent",
        "api/protocols/openai/content.py",
        "            found.setdefault(repr(placed.attachment), placed)\n",
        "            pass\n",
        FILES + "test_a_completion_is_given_the_bytes_of_each_kind_of_part",
    ),
    Mutation(
        "a refused attachment of which nobody is told which one it was",
        "api/attachments.py",
        "                error.pointer = moved(error.pointer)\n",
        "                pass\n",
        FILES + "test_what_cannot_be_attached_is_refused_where_it_stands",
    ),
    Mutation(
        "an upload for a purpose that this service has not, which is taken as another one",
        "api/protocols/openai/files.py",
        '    if fields["purpose"] not in _PURPOSES:\n',
        "    if False:\n",
        FILES + "test_an_upload_that_cannot_be_kept_is_refused_by_its_name",
    ),
]
