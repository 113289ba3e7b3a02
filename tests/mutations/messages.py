"""What agents, models and tools say, and what one bad run does to the others, broken one at a time."""

from tests.mutations.mutation import Mutation

STORABLE = "tests/test_storable.py::"
PUBLISHER = "tests/test_publisher.py::"
ONE_BAD = PUBLISHER + "test_a_log_that_cannot_be_written_is_set_aside_and_the_others_go_on"
BARE = "tests/test_lost_replies.py::test_an_end_that_the_database_does_not_take_ends_its_run_bare_and_no_others"

MUTATIONS = [
    Mutation(
        "an event that is told as the model said it",
        "worker/publisher.py",
        "self._waiting.append(storable(event))",
        "self._waiting.append(event)",
        PUBLISHER + "test_an_event_that_json_cannot_say_is_told_mended",
    ),
    Mutation(
        "a log that cannot be written, tried again for ever",
        "worker/publisher.py",
        "                await self._publish_one_by_one(tellings, ends)\n",
        "                await self._later(tellings, ends, OSError())\n",
        ONE_BAD,
    ),
    Mutation(
        "a transcript that is stored although it cannot be read",
        "worker/history.py",
        "    ModelMessagesTypeAdapter.validate_json(written)  # Numbers may be written that no reader takes.\n",
        "",
        STORABLE + "test_a_count_that_is_no_number_loses_no_transcript",
    ),
    Mutation(
        "a thread that ends with a transcript that cannot be read",
        "worker/history.py",
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
        "worker/job.py",
        "            except BaseException:  # noqa: BLE001  (its own text or attributes raise)",
        "            except Exception:  # noqa: BLE001  (its own text or attributes raise)",
        "tests/test_odd_messages.py::test_whatever_an_agent_raises_ends_the_run_at_the_first_time",
    ),
    Mutation(
        "an end that the database does not take, offered for ever",
        "worker/job.py",
        "row = await self._while_it_lasts(claimed, lambda: finish(self._database, claimed, bare))",
        "row = await self._while_it_lasts(claimed, lambda: finish(self._database, claimed, ending))",
        BARE,
    ),
    Mutation(
        "an orphan that never counts as a crash",
        "worker/roster.py",
        "            self._let_go.append(run_id)\n",
        "",
        "tests/test_lost_replies.py::test_a_run_that_is_let_go_again_and_again_counts_as_crashed",
    ),
    Mutation(
        "a heartbeat thread that ends silently",
        "worker/lease.py",
        "        except BaseException:\n",
        "        except ZeroDivisionError:\n",
        "tests/test_lease.py::test_a_beat_that_breaks_in_a_way_nobody_foresaw_ends_the_process",
    ),
    Mutation(
        "a claim that does not count its first request",
        "shared/runs/claim.py",
        "END, 0) + 1)",
        "END, 0) + 0)",
        "tests/test_runs.py::test_the_first_request_of_an_attempt_counts_from_its_claim",
    ),
]
