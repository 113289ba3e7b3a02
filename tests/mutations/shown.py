"""What streams show of an agent's work besides its answer, and how each promise is broken."""

from tests.mutations.mutation import Mutation

FEED = "tests/unit/api/streaming/test_run_feed.py::"
PUBLISHER = "tests/unit/worker/execution/test_publisher.py::"
SHOWN = "tests/unit/worker/execution/test_shown_events.py::"
REASONING = "tests/unit/worker/execution/test_reasoning.py::"

MUTATIONS = [
    Mutation(
        "reasoning of a lost attempt that stays",
        "api/streaming/run_feed.py",
        "if part <= kept or text.id <= last_kept",
        "if part >= kept",
        FEED + "test_reasoning_of_kept_steps_stays_valid_and_that_of_the_step_in_hand_does_not",
    ),
    Mutation(
        "reasoning that collapses over all its parts",
        "api/streaming/run_feed.py",
        "self._thought = self._thoughts[part] = text",
        "self._thought = self._thoughts[0] = text",
        FEED + "test_reasoning_collapses_part_by_part_each_in_its_place",
    ),
    Mutation(
        "growth of one part out of another, as it is read",
        "api/streaming/run_feed.py",
        "elif base is None or base.part != part:",
        "elif base is None:",
        FEED + "test_reasoning_of_another_part_is_no_base_for_growth",
    ),
    Mutation(
        "growth of one part out of another, as it is written",
        "worker/execution/publisher.py",
        "if before and before.part == waiting.part else None",
        "if before else None",
        PUBLISHER + "test_a_part_of_the_reasoning_that_waits_is_replaced_and_others_keep_their_place",
    ),
    Mutation(
        "growth of reasoning into a lost log",
        "worker/execution/publisher.py",
        "self._base = self._thought = None\n        self._wrote",
        "self._base = None\n        self._wrote",
        PUBLISHER + "test_a_lost_log_goes_on_with_the_whole_of_what_is_thought",
    ),
    Mutation(
        "reasoning without a limit",
        "worker/execution/reasoning.py",
        "data[: self._left]",
        "data",
        REASONING + "test_what_is_too_long_is_cut_and_goes_on_growing_by_its_length",
    ),
    Mutation(
        "parts that are numbered anew in each attempt",
        "worker/execution/reasoning.py",
        "self._last = kept",
        "self._last = 0",
        REASONING + "test_parts_are_numbered_over_all_responses_and_on_from_what_was_kept",
    ),
    Mutation(
        "an event for each token that is thought",
        "worker/models/merging.py",
        "ThinkingPartDelta(content_delta=str(first)),",
        "ThinkingPartDelta(content_delta=None as first),",
        "tests/unit/worker/models/test_merging.py::test_thoughts_are_merged_as_text_is",
    ),
    Mutation(
        "reasoning of batches",
        "worker/execution/attempt.py",
        "offer.reasoning and claimed.batch_id is None",
        "offer.reasoning",
        "tests/acceptance/test_reasoning.py::test_runs_of_batches_tell_no_reasoning_and_a_long_one_is_cut",
    ),
    Mutation(
        "progress that is not for people",
        "worker/execution/shown_events.py",
        "if not event.ui or now",
        "if now",
        SHOWN + "test_progress_is_told_as_json_in_its_place_and_only_for_people",
    ),
    Mutation(
        "progress of any size",
        "worker/execution/shown_events.py",
        "return from_json(text) if capped == text else capped",
        "return from_json(text)",
        SHOWN + "test_progress_is_told_as_json_in_its_place_and_only_for_people",
    ),
    Mutation(
        "progress without end",
        "worker/execution/shown_events.py",
        "if self._progress >= MOST_PROGRESS:",
        "if self._progress < 0:",
        SHOWN + "test_progress_without_end_is_told_less_and_less_often",
    ),
    Mutation(
        "a payload that raises and ends the run",
        "worker/execution/shown_events.py",
        "        except Exception:  # Whatever the agent's own code raises: its run goes on.",
        "        except Endless:",
        SHOWN + "test_progress_is_told_as_json_in_its_place_and_only_for_people",
    ),
    Mutation(
        "calls of a sub-agent as the agent's own",
        "worker/execution/shown_events.py",
        "self._tell_tool(event.event, parent_tool_call_id=event.tool_call_id)",
        "self._tell_tool(event.event)",
        SHOWN + "test_tools_of_the_provider_and_of_agents_that_are_asked_are_told_as_such",
    ),
    Mutation(
        "results of the provider's tools, whatever the agent shows",
        "worker/execution/shown_events.py",
        "return self._capped(say()) if self._setting is ToolEvents.FULL else None",
        "return self._capped(say())",
        SHOWN + "test_names_alone_are_told_of_all_tools_and_off_leaves_them_out",
    ),
    Mutation(
        "what is said before the output, as a part of it",
        "api/steps.py",
        '"".join(output or said)',
        '"".join([*said, *output])',
        "tests/unit/api/test_steps.py::test_what_is_said_before_a_call_is_a_step_and_no_part_of_the_output",
    ),
    Mutation(
        "a message of the agent's own that dies with its process",
        "worker/execution/answer.py",
        "            self._unstored += event.messages\n            self._said += ()",
        "            self._said += ()",
        "tests/acceptance/test_steps.py::test_what_an_agent_tells_its_model_beside_a_result_outlives_the_process",
    ),
]
