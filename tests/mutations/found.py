"""What the soak found, broken again."""

from tests.mutations.mutation import Mutation

MUTATIONS = [
    Mutation(
        "a row that shows a text as an entry that says another",
        "worker/execution/publisher.py",
        "return self._entered",
        "return self.text, self.last_entry",
        "tests/unit/worker/execution/test_publisher.py::test_no_entry_ever_has_two_texts_whatever_becomes_of_redis",
    ),
    Mutation(
        "a text that waits for Redis and is in no row",
        "worker/execution/publisher.py",
        "        for telling in tellings:\n            telling.postpone()\n",
        "",
        "tests/unit/worker/execution/test_publisher.py::test_a_row_shows_a_text_as_the_entry_that_says_it_and_without_redis_the_newest",
    ),
    Mutation(
        "a call cut short by a stop answered with 500",
        "api/server/shutdown.py",
        "            if began:\n",
        "            if not began:\n",
        "tests/unit/api/server/test_shutdown.py::test_a_call_that_is_cut_short_is_refused_for_now",
    ),
    Mutation(
        "a process for a suspect that has one",
        "shared/runs/claim.py",
        "WHERE id = :run_id AND status = 'queued' AND rung_at <= now()",
        "WHERE id = :run_id AND status = 'queued'",
        "tests/integration/worker/processes/test_quarantine.py::test_a_suspect_that_somebody_else_is_at_gets_no_second_process",
    ),
    Mutation(
        "the dead judged in a sweep, which waits for Redis",
        "shared/maintenance/sweeper.py",
        "judging = asyncio.create_task(Judge(self._settings, self._database, self._hurry.set).run())",
        "judging = asyncio.create_task(asyncio.sleep(0))",
        "tests/integration/shared/maintenance/test_liveness.py::test_the_dead_are_judged_although_redis_does_not_answer",
    ),
]
