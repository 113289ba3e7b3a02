"""Servers that answer "no", taken for something else."""

from tests.mutations.mutation import Mutation

SAYS_NO = "tests/acceptance/test_servers_say_no.py::"

MUTATIONS = [
    Mutation(
        "a database that is read-only taken for a mistake of the statement",
        "shared/database/engine.py",
        '    "25006": Trouble.READ_ONLY,\n',
        "",
        SAYS_NO + "test_a_refusal_is_known_by_its_code",
    ),
    Mutation(
        "a limit of a program taken for an outage",
        "shared/database/engine.py",
        '    "55000": Trouble.LOCKED,\n',
        '    "54": Trouble.LOCKED,\n',
        SAYS_NO + "test_a_refusal_is_known_by_its_code",
    ),
    Mutation(
        "a transaction in conflict that is not made again",
        "shared/database/engine.py",
        "_ASKED_AGAIN = {Trouble.CONFLICT, Trouble.STALE_CONNECTION}",
        "_ASKED_AGAIN = {Trouble.STALE_CONNECTION}",
        SAYS_NO + "test_a_deadlock_is_hardly_noticed",
    ),
    Mutation(
        "connections kept to a database that is read-only",
        "shared/database/hang_detector.py",
        "            self.renewals += 1\n",
        "",
        SAYS_NO + "test_connections_to_what_is_read_only_are_given_up_for_new_ones",
    ),
    Mutation(
        "connections kept to a Redis that was demoted",
        "shared/redis.py",
        "        if code in _RENEWS:\n",
        "        if code not in _BY_CODE:\n",
        SAYS_NO + "test_after_a_failover_streams_go_on_with_the_new_master",
    ),
    Mutation(
        "workers judged by a database that kept them from their heartbeats",
        "shared/maintenance/liveness.py",
        "    WITH heartbeat AS (UPDATE workers SET lease_until = lease_until WHERE false)\n",
        "",
        SAYS_NO + "test_postgres_read_only_for_longer_than_a_lease_is_no_crash_of_anybody",
    ),
    Mutation(
        "a run that was popped from a full Redis left to the sweeper",
        "worker/queue/consumer.py",
        "            await self.finish_job(member)\n",
        "            await self.finish_job(member)\n            answering = answering and answering.cancel() or None\n",
        SAYS_NO + "test_a_run_that_was_popped_from_a_full_redis_is_answered",
    ),
    Mutation(
        "a process wanted although PostgreSQL takes no writes",
        "api/probes.py",
        "        await database.check_writable(self._engine)\n",
        "",
        SAYS_NO + "test_while_postgres_says_no_callers_are_refused_for_now_and_nothing_in_hand_is_lost[25006]",
    ),
    Mutation(
        "a log that is flooded by an outage",
        "shared/logs.py",
        "        if lines < 1:\n",
        "        if lines < 0:\n",
        SAYS_NO + "test_an_outage_does_not_flood_the_log",
    ),
]
