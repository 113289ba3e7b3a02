"""What is promised where a model gives trouble, broken one by one."""

from tests.mutations.mutation import Mutation

RETRYING = "tests/test_retrying.py::"
ANSWER = "tests/test_answer.py::"
AGENTS = "tests/test_agents_as_they_are.py::"
OUTPUT = "tests/test_output_text.py::"
TROUBLE = "tests/test_model_trouble.py::"

MUTATIONS = [
    Mutation(
        "a cut stream of Chat Completions that counts as an answer",
        "worker/request_policy.py",
        'profile.setdefault("openai_chat_streaming_requires_finish_reason", True)',
        'profile.setdefault("openai_chat_streaming_requires_finish_reason", False)',
        TROUBLE + "test_a_model_that_cannot_be_had_ends_the_run[eof_text]",
    ),
    Mutation(
        "a cut stream of another provider that counts as an answer",
        "worker/answer.py",
        "        _demand_the_end(stream.response)\n",
        "",
        ANSWER + "test_a_provider_that_does_not_say_why_its_stream_ended_has_broken_off",
    ),
    Mutation(
        "a model that is waited for beyond the deadline",
        "worker/retrying.py",
        "if asyncio.get_running_loop().time() + pause >= self._give_up_at:",
        "if asyncio.get_running_loop().time() >= self._give_up_at:",
        RETRYING + "test_a_model_that_asks_for_more_time_than_there_is_is_given_up_at_once",
    ),
    Mutation(
        "a provider that is asked sooner than it says",
        "worker/retrying.py",
        "else asked + jitter",
        "else jitter",
        RETRYING + "test_a_model_that_recovers_is_asked_until_it_does_and_no_sooner_than_it_says",
    ),
    Mutation(
        "a provider that asks for minutes, waited for",
        "worker/retrying.py",
        "None if asked > LONGEST_PAUSE_SECONDS else asked + jitter",
        "asked + jitter",
        RETRYING + "test_a_model_that_asks_for_far_too_much_time_is_given_up_at_once",
    ),
    Mutation(
        "all who were refused at once, back at once",
        "worker/retrying.py",
        "random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (tried - 1)))",
        "min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (tried - 1))",
        RETRYING + "test_who_asks_again_does_so_at_any_time_up_to_one_that_doubles",
    ),
    Mutation(
        "a model that is asked again as soon the tenth time as the first",
        "worker/retrying.py",
        "FIRST_PAUSE_SECONDS * 2 ** (tried - 1)",
        "FIRST_PAUSE_SECONDS",
        RETRYING + "test_who_asks_again_does_so_at_any_time_up_to_one_that_doubles",
    ),
    Mutation(
        "a configured model whose classes each process imports for itself",
        "worker/catalog.py",
        """        importlib.import_module(infer_provider_class(name)""",
        """        str(infer_provider_class(name)""",
        "tests/test_catalog.py::test_what_a_configured_model_needs_is_imported_before_one_is_made[openai-chat:any]",
    ),
    Mutation(
        "a model of OpenAI's whose SDK each process imports for itself",
        "worker/catalog.py",
        "for module in _NEEDED_BY_OPENAI if name in _OPENAI else ():",
        "for module in ():",
        "tests/test_catalog.py::test_what_a_configured_model_needs_is_imported_before_one_is_made[openai-responses:any]",
    ),
    Mutation(
        "no valid output told as the agent's mistake",
        "worker/job.py",
        "attempt.failed(FailureCode.OUTPUT_INVALID,",
        "attempt.failed(FailureCode.AGENT_ERROR,",
        "tests/test_model_trouble.py::test_a_model_that_never_gets_it_right_is_told_apart",
    ),
    Mutation(
        "several models of which none is asked again",
        "worker/retrying.py",
        "except (ModelAPIError, FallbackExceptionGroup) as error:",
        "except ModelAPIError as error:",
        RETRYING + "test_where_all_models_fail_all_are_asked_again",
    ),
    Mutation(
        "limits that forget what earlier attempts used",
        "worker/answer.py",
        "usage=copy(self._used_before),",
        "usage=RunUsage(),",
        ANSWER + "test_what_earlier_attempts_used_counts_against_the_limits_of_an_agent",
    ),
    Mutation(
        "limits that are set and not kept",
        "worker/catalog.py",
        "usage_limits=served.usage_limits or _usage_limits(settings),",
        "usage_limits=served.usage_limits,",
        ANSWER + "test_an_agent_without_limits_of_its_own_has_those_that_are_set",
    ),
    Mutation(
        "a model that an agent selects, replaced by ours",
        "worker/answer.py",
        "model=None if self._offer.chooses_model else self._offer.model,",
        "model=self._offer.model,",
        AGENTS + "test_a_capability_that_is_made_for_a_run_selects_the_model",
    ),
    Mutation(
        "a model that an agent selects, outranked by MODEL",
        "worker/request_policy.py",
        'CapabilityOrdering(position="outermost")',
        'CapabilityOrdering(position="innermost")',
        AGENTS + "test_a_capability_that_is_made_for_a_run_selects_the_model",
    ),
    Mutation(
        "settings of ours over those of the model",
        "worker/request_policy.py",
        "if key not in own})",
        "})",
        AGENTS + "test_our_settings_hold_where_nobody_has_set_them",
    ),
    Mutation(
        "settings of ours over those of the agent",
        "worker/request_policy.py",
        "merge_model_settings(self._defaults, settings)",
        "merge_model_settings(settings, self._defaults)",
        AGENTS + "test_our_settings_hold_where_nobody_has_set_them",
    ),
    Mutation(
        "a thread without the system prompt that its first run did not live to say",
        "worker/answer.py",
        "return [self._policy, ReinjectSystemPrompt()]",
        "return [self._policy]",
        AGENTS + "test_a_thread_whose_first_run_was_cut_has_its_system_prompt",
    ),
    Mutation(
        "a thread that cannot go on because calls of it are open",
        "worker/history.py",
        "return repair_messages(history)",
        "return history",
        AGENTS + "test_a_thread_with_open_calls_goes_on",
    ),
    Mutation(
        "messages lost for good to a history processor",
        "worker/answer.py",
        "return later if len(later) > len(messages) else messages",
        "return messages",
        AGENTS + "test_a_history_that_is_cut_loses_nothing_for_good",
    ),
    Mutation(
        "a run that ends with an open call and succeeds",
        "worker/answer.py",
        "if isinstance(result.output, DeferredToolRequests):",
        "if False:",
        AGENTS + "test_a_tool_that_asks_in_the_run_ends_it_with_a_sentence",
    ),
    Mutation(
        "an inline approval that fails in the partial display",
        "worker/answer.py",
        "        except UserError:\n            return",
        "        except ZeroDivisionError:\n            return",
        AGENTS + "test_approvals_that_are_given_at_once_are_no_obstacle",
    ),
    Mutation(
        "a number that is none, told as null",
        "worker/output_text.py",
        "if text is not None and self._sure and not lost:",
        "if text is not None and self._sure:",
        OUTPUT + "test_an_output_is_read_as_what_was_said",
    ),
    Mutation(
        "an output that is told in the first way there is, whether it can be read or not",
        "worker/output_text.py",
        "self._sure = kinds <= _PLAIN",
        "self._sure = True",
        OUTPUT + "test_an_output_is_read_as_what_was_said",
    ),
]
