"""What is promised of OpenAI's protocol, broken one by one."""

from tests.mutations.mutation import Mutation

CLIENT = "tests/acceptance/test_openai.py::"
UNIT = "tests/unit/api/protocols/openai/"

MUTATIONS = [
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
        "a setting of the caller's that is taken and means nothing",
        "api/protocols/openai/parameters.py",
        "        if value is not None and not any(",
        "        if False and not any(",
        CLIENT + "test_what_an_agent_cannot_follow_is_refused_by_its_name",
    ),
]
