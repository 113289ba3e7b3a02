"""What agents, models and tools say, and what one bad run does to the others, broken one at a time."""

from tests.mutations.mutation import Mutation

EXTENT = "tests/unit/worker/test_extent.py::"
STORABLE = "tests/unit/worker/test_storable.py::"
PUBLISHER = "tests/unit/worker/execution/test_publisher.py::"
LOST_REPLIES = "tests/integration/test_lost_replies.py::"
ONE_BAD = PUBLISHER + "test_a_log_that_cannot_be_written_is_set_aside_and_the_others_go_on"
BARE = LOST_REPLIES + "test_an_end_that_the_database_does_not_take_ends_its_run_bare_and_no_others"
GUESTS = "tests/acceptance/test_guests.py::test_a_tool_ends_its_own_run_and_nobody_elses"
RAISES = "tests/acceptance/test_odd_messages.py::test_whatever_an_agent_raises_ends_the_run_at_the_first_time"
PROVIDERS = "tests/unit/worker/models/test_providers_as_they_are.py::"
ODD = "tests/acceptance/test_odd_messages.py::"

MUTATIONS = [
    Mutation(
        "an event that is told as the model said it",
        "worker/execution/publisher.py",
        "self._waiting.append({name: storable(value) for name, value in event.items()})",
        "self._waiting.append(event)",
        PUBLISHER + "test_an_event_that_json_cannot_say_is_told_mended",
    ),
    Mutation(
        "texts of many runs in one array, written quote by quote on the event loop",
        "shared/database/engine.py",
        "psycopg.adapters.register_dumper(list, _TextArrayDumper)\n",
        "",
        ODD + "test_what_is_large_or_endless_ends_its_own_run_and_keeps_no_loop[large]",
    ),
    Mutation(
        "a text in an array whose backslashes are left as they are",
        "shared/database/engine.py",
        r'.replace(b"\\", b"\\\\").replace',
        ".replace",
        "tests/integration/shared/database/test_engine.py::test_lists_of_texts_arrive_as_they_are[1]",
    ),
    Mutation(
        "a log that cannot be written, tried again for ever",
        "worker/execution/publisher.py",
        "                await self._publish_one_by_one(tellings, ends)\n",
        "                await self._later(tellings, ends, OSError())\n",
        ONE_BAD,
    ),
    Mutation(
        "a transcript that is stored although it cannot be read",
        "worker/execution/history.py",
        "        ModelMessagesTypeAdapter.validate_json(each)  # Numbers may be written that no reader takes.\n",
        "        pass\n",
        STORABLE + "test_a_count_that_is_no_number_loses_no_transcript",
    ),
    Mutation(
        "large metadata that is written as lists and dicts",
        "worker/execution/history.py",
        "            if size <= room:\n",
        "            if size >= 0:\n",
        ODD + "test_metadata_that_is_large_is_kept_as_text",
    ),
    Mutation(
        "iterators in objects that are left where they are",
        "worker/extent.py",
        "    return held | changed if isinstance(value, Mapping) else _changed(value, held, changed)\n",
        "    return held | changed if isinstance(value, Mapping) else value\n",
        EXTENT + "test_an_object_that_is_copied_stays_what_it_was",
    ),
    Mutation(
        "an iterator that is read on the event loop",
        "worker/extent.py",
        "    copied = await asyncio.to_thread(copier.copy, value)\n",
        "    copied = copier.copy(value)\n",
        EXTENT + "test_iterators_are_read_in_a_thread",
    ),
    Mutation(
        "a large partial output that is written on the event loop",
        "worker/execution/answer.py",
        "        if is_large:\n",
        "        if is_large and not partial:\n",
        ODD + "test_what_is_large_or_endless_ends_its_own_run_and_keeps_no_loop[large_output]",
    ),
    Mutation(
        "an error of the agent's instructions that is taken for the model's",
        "worker/execution/answer.py",
        "            if self._policy.failed or (stream is not None and _is_filtered(error, stream.response)):\n",
        "            if self._policy is not None:\n",
        RAISES + "[rejecting_instructions-agent_error-ModelHTTPError]",
    ),
    Mutation(
        "a filter of contents that is taken for the agent's error",
        "worker/execution/answer.py",
        "            if _is_filtered(error, node.model_response):\n",
        "            if error is None:\n",
        PROVIDERS + "test_a_filter_of_contents_is_a_rejection_by_the_model[plain]",
    ),
    Mutation(
        "a thread that ends with a transcript that cannot be read",
        "worker/execution/history.py",
        "    except Exception as error:  # noqa: BLE001  (another version wrote it, or another hand)",
        "    except KeyError as error:",
        STORABLE + "test_where_a_transcript_cannot_be_read_the_query_and_the_answer_stand_for_it",
    ),
    Mutation(
        "halves of an emoji that are not joined",
        "worker/storable.py",
        '.decode("utf-16-le", "replace")',
        '.decode("utf-16-le", "surrogatepass").encode(errors="replace").decode()',
        STORABLE + "test_what_json_cannot_say_is_mended_or_named",
    ),
    Mutation(
        "metadata that ends the process where it is read",
        "worker/storable.py",
        "    except BaseException:  # noqa: BLE001  (foreign classes raise anything, whatever",
        "    except Exception:  # noqa: BLE001  (foreign classes raise anything, whatever",
        STORABLE + "test_what_json_cannot_say_is_mended_or_named",
    ),
    Mutation(
        "an error that exits as it is asked for its text",
        "worker/execution/job.py",
        "            except BaseException:  # noqa: BLE001  (its own text or attributes raise)",
        "            except Exception:  # noqa: BLE001  (its own text or attributes raise)",
        "tests/acceptance/test_odd_messages.py::test_whatever_an_agent_raises_ends_the_run_at_the_first_time",
    ),
    Mutation(
        "an end that the database does not take, offered for ever",
        "worker/execution/job.py",
        "row = await self._while_it_lasts(claimed, lambda: finish(self._database, claimed, bare))",
        "row = await self._while_it_lasts(claimed, lambda: finish(self._database, claimed, ending))",
        BARE,
    ),
    Mutation(
        "an orphan that never counts as a crash",
        "worker/execution/in_flight.py",
        "            self._let_go.append(run_id)\n",
        "",
        "tests/integration/test_lost_replies.py::test_a_run_that_is_let_go_again_and_again_counts_as_crashed",
    ),
    Mutation(
        "a heartbeat thread that ends silently",
        "worker/execution/lease.py",
        "        except BaseException:\n",
        "        except ZeroDivisionError:\n",
        "tests/integration/worker/execution/test_lease.py::test_a_beat_that_breaks_in_a_way_nobody_foresaw_ends_the_process",
    ),
    Mutation(
        "a claim that does not count its first request",
        "shared/runs/claim.py",
        "END, 0) + 1)",
        "END, 0) + 0)",
        "tests/integration/shared/runs/test_transitions.py::test_the_first_request_of_an_attempt_counts_from_its_claim",
    ),
    Mutation(
        "a run that is given the tasks of all",
        "worker/guests/context.py",
        "asyncio.all_tasks = tasks.all_tasks = _own_tasks(tasks.all_tasks)",
        "_own_tasks(tasks.all_tasks)",
        GUESTS + "[cancels_all_tasks]",
    ),
    Mutation(
        "a run that cancels the tasks of all",
        "worker/guests/context.py",
        "        if guest not in {None, self.run} and not is_shared and not (self._first or self).done():\n",
        "        if self.run == self:\n",
        GUESTS + "[cancels_all_tasks_that_it_finds]",
    ),
    Mutation(
        "a thread of a run that counts as the worker's",
        "worker/guests/context.py",
        "    _give_threads_their_context()\n",
        "    assert _give_threads_their_context\n",
        GUESTS + "[replaces_sleep_in_a_thread]",
    ),
    Mutation(
        "a run that replaces what all runs use",
        "worker/guests/context.py",
        "        module.__class__ = _Shared\n",
        "        assert module\n",
        GUESTS + "[replaces_sleep]",
    ),
    Mutation(
        "what a run has changed, put back only by the look each second",
        "worker/execution/job.py",
        "        self._put_back()\n",
        "",
        "tests/acceptance/test_guests.py::test_what_belongs_to_the_process_is_put_back_and_the_log_says_who_was_there",
    ),
    Mutation(
        "a result that is written although it has no end",
        "worker/extent.py",
        "                size += known\n",
        "                assert known >= 0\n",
        "tests/unit/worker/test_extent.py::test_the_values_of_shared_parts_count_each_time",
    ),
    Mutation(
        "an error of a tool that is taken for the model's",
        "worker/execution/job.py",
        "is_of_model = error is attempt.answer.model_error",
        "is_of_model = True",
        ODD
        + "test_whatever_an_agent_raises_ends_the_run_at_the_first_time[raises_rejection-agent_error-ModelHTTPError]",
    ),
    Mutation(
        "a plain factory of dependencies on the event loop",
        "worker/catalog.py",
        "made = await asyncio.to_thread(function, *arguments)",
        "made = function(*arguments)",
        "tests/acceptance/test_catalog.py::test_a_plain_factory_may_wait_without_keeping_the_loop",
    ),
]
