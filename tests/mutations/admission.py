"""What admission promises about what may wait, broken limit by limit."""

from tests.mutations.mutation import Mutation

RUNNING = "tests/test_running.py::"
ADMISSION = "tests/test_admission.py::"
SERVED = "tests/test_served.py::"
REFUSED = ADMISSION + "test_full_queues_refuse_and_store_nothing"

MUTATIONS = [
    Mutation(
        "a full queue of a user that refuses nothing",
        "shared/runs/admission.py",
        "(Limit.USER, settings.queued_per_user),",
        "",
        REFUSED,
    ),
    Mutation(
        "a full queue of a tenant that refuses nothing",
        "shared/runs/admission.py",
        "(Limit.TENANT, settings.queued_per_tenant),",
        "",
        REFUSED,
    ),
    Mutation(
        "a full queue that refuses nothing",
        "shared/runs/admission.py",
        "(Limit.QUEUE, settings.max_queued),",
        "",
        REFUSED,
    ),
    Mutation(
        "a slow queue that refuses nothing",
        "shared/runs/admission.py",
        "(Limit.AGE, settings.max_queued_seconds),",
        "",
        REFUSED,
    ),
    Mutation(
        "a refusal that stores the run",
        "shared/runs/accept.py",
        "    return await store(database, lambda connection: accept_in(connection, asked, key, admission))\n",
        """    async with database.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        return await accept_in(connection, asked, key, admission)
""",
        REFUSED,
    ),
    Mutation(
        "a full service told as the caller's fault",
        "api/problems.py",
        "429 if error.is_of_caller else 503",
        "429",
        REFUSED,
    ),
    Mutation(
        "no turns near a user's limit",
        "shared/runs/admission.py",
        "return self.most if self.locked or not self.most else self.most - NEAR or -1",
        "return self.most",
        ADMISSION + "test_however_many_ask_at_once_a_user_has_no_more_than_may_wait",
    ),
    Mutation(
        "turns near a limit without a lock",
        "shared/runs/admission.py",
        '                await connection.execute(_TAKE_TURNS, {"name": turn.lock})\n',
        "",
        ADMISSION + "test_however_many_users_ask_at_once_a_tenant_has_no_more_than_may_wait",
    ),
    Mutation(
        "room that is believed in when it is used up",
        "shared/runs/admission.py",
        "look = self._room <= 0 or time.monotonic()",
        "look = time.monotonic()",
        ADMISSION + "test_the_queue_is_counted_anew_once_the_room_that_was_seen_is_used_up",
    ),
    Mutation(
        "room that is believed in for ever",
        "shared/runs/admission.py",
        "look = self._room <= 0 or time.monotonic() - self._looked_at > LOOK_SECONDS",
        "look = self._room <= 0",
        ADMISSION + "test_the_room_that_was_seen_is_not_believed_in_for_long",
    ),
    Mutation(
        "runs of batches that count among the interactive ones",
        "shared/runs/admission.py",
        "_QUEUED = \"status = 'queued' AND lane = 'interactive'\"",
        "_QUEUED = \"status = 'queued'\"",
        ADMISSION + "test_batches_count_against_their_own_limits_only",
    ),
    Mutation(
        "a batch that is admitted by what is there without it",
        "shared/runs/admission.py",
        "        await self._see_room(connection, tenant, items)\n",
        "        await self._see_room(connection, tenant, 0)\n",
        ADMISSION + "test_a_batch_that_has_no_room_is_not_even_stored",
    ),
    Mutation(
        "a batch that is admitted by what was there before it",
        "shared/runs/admission.py",
        "        await self._see_room(connection, tenant, 0)\n",
        "",
        ADMISSION + "test_batches_that_are_submitted_at_once_do_not_exceed_a_limit",
    ),
    Mutation(
        "a retried batch that is admitted unseen",
        "shared/batches/retry.py",
        "return await admission.admit_batch(\n"
        "            connection, old.tenant, old.failed, lambda: write_rows(connection, old.agent_type, old.failed)\n"
        "        )",
        "return await write_rows(connection, old.agent_type, old.failed)",
        ADMISSION + "test_batches_count_against_their_own_limits_only",
    ),
    Mutation(
        "batches that do not see each other",
        "shared/runs/admission.py",
        '        await connection.execute(_TAKE_TURNS, {"name": "batches"})\n',
        "",
        ADMISSION + "test_batches_that_are_submitted_at_once_do_not_exceed_a_limit",
    ),
    Mutation(
        "batches that are stored one after the other",
        "shared/runs/admission.py",
        """        stored = await store()
        await connection.execute(_TAKE_TURNS, {"name": "batches"})
""",
        """        await connection.execute(_TAKE_TURNS, {"name": "batches"})
        stored = await store()
""",
        ADMISSION + "test_who_stores_a_batch_holds_up_no_other_before_its_commit",
    ),
    Mutation(
        "a pool that is closed by another",
        "shared/runs/admission.py",
        "AND pool = (SELECT pool FROM agents WHERE agent_type = :agent_type)",
        "AND CAST(:agent_type AS text) IS NOT NULL",
        ADMISSION + "test_a_run_that_has_waited_too_long_for_a_slot_closes_its_pool",
    ),
    Mutation(
        "a pool that is closed by a run behind its thread",
        "shared/runs/admission.py",
        "AND earlier.seq < old.seq",
        "AND earlier.seq < 0",
        ADMISSION + "test_a_run_that_waits_behind_its_thread_closes_nothing",
    ),
    Mutation(
        "a pool that is closed by a run that was only just rung",
        "shared/runs/admission.py",
        "WHERE rung_at < now() - make_interval(secs => :oldest_seconds) AND due_at",
        "WHERE due_at",
        ADMISSION + "test_a_run_that_waits_for_something_else_than_a_slot_closes_nothing",
    ),
    Mutation(
        "more that run than may",
        "shared/runs/running.py",
        "        await self._take_turns(connection, run_id)\n        values",
        "        values",
        RUNNING + "test_however_many_are_claimed_at_once_no_more_run_than_may",
    ),
    Mutation(
        "a user who waits for another one's runs",
        "shared/runs/running.py",
        "user_id NOT IN (SELECT user_id FROM busy WHERE busy.runs >= :of_user)",
        "NOT EXISTS (SELECT FROM busy WHERE busy.runs >= :of_user)",
        RUNNING + "test_a_user_who_has_as_many_as_may_run_holds_up_nobody_else",
    ),
    Mutation(
        "runs of batches that count among those that run",
        "shared/runs/running.py",
        "_RUNNING = \"status = 'running' AND lane = 'interactive'\"",
        "_RUNNING = \"status = 'running'\"",
        RUNNING + "test_runs_of_batches_neither_count_nor_are_passed_over",
    ),
    Mutation(
        "an agent that nobody serves accepts queries for ever",
        "shared/runs/admission.py",
        "        if row.agent_not_served:\n            raise AgentNotServed(self.unserved_seconds)\n",
        "",
        SERVED + "test_an_agent_that_has_not_been_served_for_a_minute_is_refused",
    ),
    Mutation(
        "a worker that ended a moment ago does not count",
        "shared/served.py",
        "(ended_at IS NULL OR ended_at > {long_ago})",
        "ended_at IS NULL",
        SERVED + "test_a_restart_of_the_only_worker_refuses_nothing",
    ),
    Mutation(
        "a lease that vouches for agents that its worker does not serve",
        "shared/served.py",
        "(workers.agents IS NULL OR served_agent.agent_type = ANY(workers.agents))",
        "true",
        SERVED + "test_who_serves_an_agent",
    ),
]
