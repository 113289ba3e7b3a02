"""What is promised of threads, broken one by one."""

from tests.mutations.mutation import Mutation

TESTS = "tests/acceptance/test_threads.py::"
STREAM = "tests/acceptance/test_thread_stream.py::"

MUTATIONS = [
    Mutation(
        "a replaced message that the model still knows",
        "shared/runs/cancel.py",
        "    await connection.execute(_TAKE_OUT, values)\n",
        "",
        TESTS + "test_a_query_takes_the_place_of_another_and_of_all_after_it",
    ),
    Mutation(
        "a replaced message that readers still see",
        "shared/runs/cancel.py",
        "    await connection.execute(_ERASE_FROM, values)\n",
        "",
        TESTS + "test_a_query_takes_the_place_of_another_and_of_all_after_it",
    ),
    Mutation(
        "a fork that has forgotten what the model was told",
        "shared/runs/fork.py",
        "        SELECT new_id, messages, transcripts.attempt FROM taken JOIN transcripts ON run_id = id\n",
        "        SELECT new_id, messages, transcripts.attempt FROM taken JOIN transcripts ON run_id = id WHERE false\n",
        TESTS + "test_a_fork_goes_its_own_way",
    ),
    Mutation(
        "the stream of a thread that waits for what is announced, and looks at no row",
        "api/streaming/threads.py",
        "for feed in self._feeds.values() if feed.is_awaited]",
        "for feed in self._feeds.values() if not feed]",
        STREAM + "test_runs_that_start_later_and_runs_of_schedules_are_told",
    ),
    Mutation(
        "the stream of a thread that begins a run anew where a reader got to its middle",
        "api/streaming/follow.py",
        "            first = run, after\n",
        "            first = run, BEFORE_ALL\n",
        STREAM + "test_it_goes_on_exactly_where_a_reader_got_to",
    ),
    Mutation(
        "the stream of a thread that stays open when the thread is gone",
        "api/streaming/threads.py",
        'values):\n            raise NotFound("thread")',
        "values):\n            return None",
        STREAM + "test_it_ends_with_the_thread[idle]",
    ),
    Mutation(
        "a follower of a thread who keeps the room of his call",
        "api/streaming/thread_follower.py",
        "            self._call.close()",
        "            pass",
        STREAM + "test_it_takes_one_of_the_calls_that_a_user_may_have_open_and_gives_it_back",
    ),
]
