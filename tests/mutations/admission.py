"""What admission promises about what may wait, broken limit by limit."""

from tests.mutations.mutation import Mutation

RUNNING = "tests/integration/shared/runs/test_concurrency_limits.py::"
ADMISSION = "tests/integration/shared/runs/test_queue_limits.py::"
TURNS = "tests/unit/shared/test_fair_turns.py::"
SERVED = "tests/acceptance/test_served_agents.py::"
REFUSED = ADMISSION + "test_full_queues_refuse_and_store_nothing"

MUTATIONS = [
    Mutation(
        "a full queue of a user that refuses nothing",
        "shared/runs/queue_limits.py",
        "(Limit.USER, settings.queued_per_user),",
        "",
        REFUSED,
    ),
    Mutation(
        "a full queue of a tenant that refuses nothing",
        "shared/runs/queue_limits.py",
        "(Limit.TENANT, settings.queued_per_tenant),",
        "",
        REFUSED,
    ),
    Mutation(
        "a full queue that refuses nothing",
        "shared/runs/queue_limits.py",
        "(Limit.QUEUE, settings.max_queued),",
        "",
        REFUSED,
    ),
    Mutation(
        "a slow queue that refuses nothing",
        "shared/runs/queue_limits.py",
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
        "shared/runs/queue_limits.py",
        "return self.most if self.locked or not self.most else self.most - NEAR or -1",
        "return self.most",
        ADMISSION + "test_however_many_ask_at_once_a_user_has_no_more_than_may_wait",
    ),
    Mutation(
        "turns near a limit without a lock",
        "shared/runs/queue_limits.py",
        '                await connection.execute(_TAKE_TURNS, {"name": turn.lock})\n',
        "",
        ADMISSION + "test_however_many_users_ask_at_once_a_tenant_has_no_more_than_may_wait",
    ),
    Mutation(
        "room that is believed in when it is used up",
        "shared/runs/queue_limits.py",
        "look = self._room <= 0 or time.monotonic()",
        "look = time.monotonic()",
        ADMISSION + "test_the_queue_is_counted_anew_once_the_room_that_was_seen_is_used_up",
    ),
    Mutation(
        "room that is believed in for ever",
        "shared/runs/queue_limits.py",
        "look = self._room <= 0 or time.monotonic() - self._looked_at > LOOK_SECONDS",
        "look = self._room <= 0",
        ADMISSION + "test_the_room_that_was_seen_is_not_believed_in_for_long",
    ),
    Mutation(
        "runs of batches that count among the interactive ones",
        "shared/runs/queue_limits.py",
        "_QUEUED = \"status = 'queued' AND lane = 'interactive' AND NOT starts_later\"",
        "_QUEUED = \"status = 'queued' AND NOT starts_later\"",
        ADMISSION + "test_batches_count_against_their_own_limits_only",
    ),
    Mutation(
        "a batch that is admitted by what is there without it",
        "shared/runs/queue_limits.py",
        "        await self._see_room(connection, tenant, items)\n",
        "        await self._see_room(connection, tenant, 0)\n",
        ADMISSION + "test_a_batch_that_has_no_room_is_not_even_stored",
    ),
    Mutation(
        "a batch that is admitted by what was there before it",
        "shared/runs/queue_limits.py",
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
        "shared/runs/queue_limits.py",
        '        await connection.execute(_TAKE_TURNS, {"name": "batches"})\n',
        "",
        ADMISSION + "test_batches_that_are_submitted_at_once_do_not_exceed_a_limit",
    ),
    Mutation(
        "batches that are stored one after the other",
        "shared/runs/queue_limits.py",
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
        "shared/runs/queue_limits.py",
        "AND pool = (SELECT pool FROM agents WHERE agent_type = :agent_type)",
        "AND CAST(:agent_type AS text) IS NOT NULL",
        ADMISSION + "test_a_run_that_has_waited_too_long_for_a_slot_closes_its_pool",
    ),
    Mutation(
        "a pool that is closed by a run behind its thread",
        "shared/runs/queue_limits.py",
        'AND {first_in_thread("old")}',
        "",
        ADMISSION + "test_a_run_that_waits_behind_its_thread_closes_nothing",
    ),
    Mutation(
        "a pool that is closed by a run that was only just rung",
        "shared/runs/queue_limits.py",
        "WHERE rung_at < now() - make_interval(secs => :oldest_seconds) AND due_at",
        "WHERE due_at",
        ADMISSION + "test_a_run_that_waits_for_something_else_than_a_slot_closes_nothing",
    ),
    Mutation(
        "more that run than may",
        "shared/runs/concurrency_limits.py",
        "        await self._take_turns(connection, run_id)\n        values",
        "        values",
        RUNNING + "test_however_many_are_claimed_at_once_no_more_run_than_may",
    ),
    Mutation(
        "a user who waits for another one's runs",
        "shared/runs/concurrency_limits.py",
        "user_id NOT IN (SELECT user_id FROM busy WHERE busy.runs >= :of_user)",
        "NOT EXISTS (SELECT FROM busy WHERE busy.runs >= :of_user)",
        RUNNING + "test_a_user_who_has_as_many_as_may_run_holds_up_nobody_else",
    ),
    Mutation(
        "runs of batches that count among those that run",
        "shared/runs/concurrency_limits.py",
        "_RUNNING = \"status = 'running' AND lane = 'interactive'\"",
        "_RUNNING = \"status = 'running'\"",
        RUNNING + "test_runs_of_batches_neither_count_nor_are_passed_over",
    ),
    Mutation(
        "an agent that nobody serves accepts queries for ever",
        "shared/runs/queue_limits.py",
        "        if room.agent_not_served:\n            raise AgentNotServed(self.unserved_seconds)\n",
        "",
        SERVED + "test_an_agent_that_has_not_been_served_for_a_minute_is_refused",
    ),
    Mutation(
        "a worker that ended a moment ago does not count",
        "shared/served_agents.py",
        "(ended_at IS NULL OR ended_at > {long_ago})",
        "ended_at IS NULL",
        SERVED + "test_a_restart_of_the_only_worker_refuses_nothing",
    ),
    Mutation(
        "a lease that vouches for agents that its worker does not serve",
        "shared/served_agents.py",
        "(workers.agents IS NULL OR served_agent.agent_type = ANY(workers.agents))",
        "true",
        SERVED + "test_who_serves_an_agent",
    ),
    Mutation(
        "a caller that stands before others as often as it asks",
        "shared/fair_turns.py",
        "            del self._waiting[tenant], users[user]\n",
        "            del users[user]\n",
        TURNS + "test_a_tenant_that_comes_last_is_served_next_but_one",
    ),
    Mutation(
        "a user that stands before the others of its tenant",
        "shared/fair_turns.py",
        "            del self._waiting[tenant], users[user]\n            if line:\n",
        "            del self._waiting[tenant]\n            if not line:\n                del users[user]\n"
        "            else:\n",
        TURNS + "test_the_users_of_a_tenant_take_turns_of_its_own",
    ),
    Mutation(
        "a newcomer that takes what another was given",
        "shared/fair_turns.py",
        "            waiter.set_result(item)\n",
        "            waiter.set_result(item)\n            self.free.append(item)\n",
        TURNS + "test_a_newcomer_does_not_pass_those_who_wait",
    ),
    Mutation(
        "an item that is lost with a call that was cancelled",
        "shared/fair_turns.py",
        "                self.give(waiter.result())\n",
        "                pass\n",
        TURNS + "test_who_gave_up_has_no_turn_and_keeps_no_item",
    ),
    Mutation(
        "a pool that serves whoever asked first",
        "shared/database/engine.py",
        "        poolclass=FairPool,\n",
        "",
        "tests/integration/shared/database/test_engine.py::test_connections_go_round_among_tenants",
    ),
    Mutation(
        "a connection to Redis that is not given back",
        "shared/redis.py",
        "        await super().release(connection)\n        self._places.give(None)\n",
        "        await super().release(connection)\n",
        "tests/integration/shared/test_redis.py::test_all_connections_come_back_however_a_call_ends",
    ),
    Mutation(
        "a request whose caller no pool knows",
        "api/requests/identity.py",
        "    CALLER.set((owner.tenant, str(owner.user_id)))\n",
        "",
        "tests/acceptance/test_rate_limits.py::test_the_pools_know_whom_a_request_is_of",
    ),
]
