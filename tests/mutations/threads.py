"""What is promised of threads, broken one by one."""

from tests.mutations.mutation import Mutation

TESTS = "tests/acceptance/test_threads.py::"

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
]
