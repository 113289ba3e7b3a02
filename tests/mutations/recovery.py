"""What is promised for when processes die, stop and come back, broken piece by piece."""

from tests.mutations.mutation import Mutation

CALLING = "tests/test_calling.py::"
CRASHES = "tests/test_crashes.py::"
ISOLATION = "tests/test_isolation.py::"
LEASE = "tests/test_lease.py::"
NURSERY = "tests/test_nursery.py::"
PARENT = "tests/test_parent.py::"
SERVERS_AWAY = "tests/test_servers_away.py::"
STOPPING = "tests/test_stopping.py::"
SWEEPER = "tests/test_sweeper.py::"
THREAD_ERASED = "test_a_deleted_thread_is_erased_with_all_it_holds_and_others_are_kept_however_old"

MUTATIONS = [
    Mutation(
        "a process that is only made after the word to stop, and works",
        "worker/nursery.py",
        "stopping |= wanted is None",
        "stopping = wanted is None",
        ISOLATION + "test_a_process_is_told_to_stop_even_if_it_is_only_being_started[False]",
    ),
    Mutation(
        "workers that outlive their parent",
        "worker/nursery.py",
        "stopping |= wanted is None",
        "stopping |= wanted is None and not ended",
        NURSERY + "test_whoever_was_made_is_told_to_stop_when_its_maker_is_killed",
    ),
    Mutation(
        "workers that nobody watches any more",
        "worker/nursery.py",
        "os.kill(pid, signal.SIGTERM)",
        "os.kill(pid, 0)",
        NURSERY + "test_whoever_was_made_is_told_to_stop_when_the_nursery_is_killed",
    ),
    Mutation(
        "a worker that lives on although it can answer no suspect",
        "worker/app.py",
        "            background.append(asyncio.create_task(self._isolation.lost()))\n",
        "            background.append(asyncio.create_task(asyncio.sleep(3600)))\n",
        CRASHES + "test_a_worker_that_can_make_no_more_processes_ends",
    ),
    Mutation(
        "a dead process whose lease is waited for although its parent saw it die",
        "worker/parent.py",
        "            await declare_dead(self._database, worker_id)\n",
        "",
        CRASHES + "test_a_suspect_that_behaves_is_answered",
    ),
    Mutation(
        "a parent that restarts nothing",
        "worker/parent.py",
        "            await _first_of(self._stopping, pause)\n",
        "            await self._stopping.wait()\n",
        PARENT + "test_what_died_is_started_again_but_a_suspect_of_another_pool_is_left_to_its_own",
    ),
    Mutation(
        "a suspect that waits until a worker has been started again",
        "worker/parent.py",
        "            self._together.create_task(self._answer(run_id))\n",
        "            self._suspects -= 1\n",
        PARENT + "test_a_suspect_does_not_wait_for_a_worker_that_is_only_starting",
    ),
    Mutation(
        "a suspect answered by the parent of another pool",
        "worker/parent.py",
        "if ring.pool == self._settings.pool]",
        "if ring.pool]",
        PARENT + "test_what_died_is_started_again_but_a_suspect_of_another_pool_is_left_to_its_own",
    ),
    Mutation(
        "all that was imported looked through again and again",
        "worker/nursery.py",
        """        gc.freeze()
        self._end""",
        """        self._end""",
        NURSERY + "test_what_was_imported_there_is_there_for_those_made_later",
    ),
    Mutation(
        "a parent that does not know what the agents of its workers need",
        "worker/nursery.py",
        "self._above.send(names)",
        "list(names)",
        NURSERY + "test_what_a_worker_needs_is_imported_for_those_that_come_after_it",
    ),
    Mutation(
        "a worker that ends because PostgreSQL is away as it starts",
        "worker/app.py",
        "                if not is_away(error):\n",
        "                if error:\n",
        SERVERS_AWAY + "test_a_worker_that_starts_while_postgres_is_away_waits_for_it",
    ),
    Mutation(
        "a worker with a stuck loop that keeps its runs",
        "worker/lease.py",
        "elif now - self._asked > self._settings.stuck_loop_seconds:",
        "elif now - self._asked > 1000 * self._settings.stuck_loop_seconds:",
        CRASHES + "test_a_worker_whose_loop_is_stuck_ends_itself",
    ),
    Mutation(
        "an API process that sees to nothing",
        "api/app.py",
        "asyncio.create_task(Sweeper(settings, engine, lanes, event_log).run())",
        "asyncio.create_task(asyncio.sleep(3600))",
        CRASHES + "test_where_no_worker_lives_an_api_process_sees_to_what_the_dead_have_left",
    ),
    Mutation(
        "an end that stays untold",
        "shared/sweeper.py",
        '"tell_ends": (seen.untold, ',
        '"tell_ends": (seen.untold and seen.overdue, ',
        SWEEPER + "test_an_end_that_nobody_has_told_is_told",
    ),
    Mutation(
        "an end told again although its author is about to note it",
        "shared/sweeper.py",
        "    WHERE finished_at < now() - make_interval(secs => :seconds) AND NOT end_told\n",
        "    WHERE finished_at <= now() AND CAST(:seconds AS float) > 0 AND NOT end_told\n",
        SWEEPER + "test_an_end_that_nobody_has_told_is_told",
    ),
    Mutation(
        "who was passed over waits for a sweep",
        "worker/job.py",
        "        await self._lanes.ring(passed_over)\n",
        "",
        CALLING + "test_who_was_passed_over_is_called_as_the_run_before_it_ends",
    ),
    Mutation(
        "the next of a thread waits for a sweep",
        "worker/job.py",
        "            await self._lanes.ring([] if ring is None else [ring])\n",
        "",
        CALLING + "test_the_next_of_a_thread_is_called_as_the_run_before_it_ends",
    ),
    Mutation(
        "what was given back waits for a sweep",
        "worker/job.py",
        "                await self._lanes.ring([ring])\n                return\n",
        "                return\n",
        CALLING + "test_what_is_given_back_is_called_for_first_and_at_once",
    ),
    Mutation(
        "a run that fails because its worker is told to stop",
        "worker/job.py",
        "            case Stop.DEADLINE:\n",
        "            case Stop.DEADLINE | Stop.STOPPING:\n",
        STOPPING + "test_ten_rolling_restarts_with_runs_longer_than_the_drain_time_fail_nothing",
    ),
    Mutation(
        "a beat that stores nothing of an answer",
        "worker/lease.py",
        "for step in (self._keep, self._mark_told, self._read_held)",
        "for step in (self._mark_told, self._read_held)",
        LEASE + "test_a_beat_stores_what_there_is_of_an_answer_but_not_of_an_attempt_that_is_over",
    ),
    Mutation(
        "a beat that stores an answer over a later attempt's",
        "worker/lease.py",
        "runs.id = held.id AND runs.attempt = held.attempt AND",
        "runs.id = held.id AND",
        LEASE + "test_a_beat_stores_what_there_is_of_an_answer_but_not_of_an_attempt_that_is_over",
    ),
    Mutation(
        "a wish to cancel that only Redis can bring",
        "worker/roster.py",
        "            elif row.cancel_requested:\n",
        "            elif not row.run_id:\n",
        LEASE + "test_a_beat_brings_the_wish_to_cancel_also_without_redis",
    ),
    Mutation(
        "a lease that counts from the answer of the database",
        "worker/lease.py",
        "self._trusted_until = sent + self._settings.lease_seconds",
        "self._trusted_until = monotonic() + self._settings.lease_seconds",
        LEASE + "test_a_lease_counts_from_before_the_beat_was_sent",
    ),
    Mutation(
        "a beat that brings the dead back",
        "worker/lease.py",
        "WHERE id = %(id)s AND ended_at IS NULL RETURNING id",
        "WHERE id = %(id)s RETURNING id",
        LEASE + "test_a_worker_that_was_declared_dead_stops_what_it_does_and_begins_anew",
    ),
    Mutation(
        "a worker that was declared dead and goes on with its runs",
        "worker/lease.py",
        """            self._call(self._on_lost)
            worker_id = new_id()""",
        """            worker_id = new_id()""",
        LEASE + "test_a_worker_that_was_declared_dead_stops_what_it_does_and_begins_anew",
    ),
    Mutation(
        "a dead process waited for because it had been away before",
        "shared/runs/take_back.py",
        "(id = :worker_id OR first_id = :worker_id)",
        "id = :worker_id",
        LEASE + "test_a_worker_that_was_declared_dead_stops_what_it_does_and_begins_anew",
    ),
    Mutation(
        "a worker whose lease has lapsed and that goes on with its runs",
        "worker/lease.py",
        """        self._call(self._on_lost)
        self._call(answered.set)""",
        """        self._call(answered.set)""",
        "tests/test_pulse.py::test_a_beat_that_hangs_gives_the_lease_up_and_takes_it_up_again",
    ),
    Mutation(
        "as many suspects at once as there are",
        "worker/isolation.py",
        "            async with self._room:\n",
        "            if self._room:\n",
        ISOLATION + "test_only_so_many_suspects_are_tried_at_once",
    ),
    Mutation(
        "suspects that wait in all the slots",
        "worker/isolation.py",
        "        if self._here >= self._most_here:\n",
        "        if self._here < 0:\n",
        ISOLATION + "test_more_suspects_than_there_is_room_for_hold_no_slots",
    ),
    Mutation(
        "a run that may kill once more than is said",
        "shared/runs/take_back.py",
        "OR crashes + 1 >= :max_crashes THEN 'failed'",
        "OR crashes >= :max_crashes THEN 'failed'",
        "tests/test_runs.py::test_a_run_of_the_dead_is_a_suspect_and_has_a_budget",
    ),
    Mutation(
        "a stop that lets no run end",
        "worker/app.py",
        "await self._until_idle(self._settings.drain_seconds)",
        "await self._until_idle(0)",
        "tests/test_processes.py::test_a_worker_told_to_stop_lets_short_runs_end",
    ),
    Mutation(
        "a deadline that a worker leaves to the sweeper",
        "worker/job.py",
        "call_later(attempt.claimed.seconds_left, attempt.stop, Stop.DEADLINE)",
        "call_later(attempt.claimed.seconds_left + 60, attempt.stop, Stop.DEADLINE)",
        "tests/test_cancelling.py::test_a_worker_ends_its_run_at_the_deadline_with_what_there_is",
    ),
    Mutation(
        "a thread of which the database lets two run",
        "shared/migrations/versions/0001_runs.py",
        """"one_running_run_a_thread", "runs", ["thread_id"], unique=True""",
        """"one_running_run_a_thread", "runs", ["thread_id"], unique=False""",
        "tests/test_runs.py::test_the_database_itself_refuses_two_running_runs_of_a_thread",
    ),
    Mutation(
        "a wish to cancel that is noted anew each time",
        "shared/runs/cancel.py",
        """        SET cancel_requested_at = coalesce(cancel_requested_at, now()),
            status""",
        """        SET cancel_requested_at = now(),
            status""",
        "tests/test_cancelling.py::test_cancelling_again_changes_nothing",
    ),
    Mutation(
        "a thread erased that nobody has deleted",
        "shared/sweeper.py",
        "SELECT id FROM threads WHERE deleted_at < now() - interval '1 minute'",
        "SELECT id FROM threads WHERE (deleted_at IS NULL OR deleted_at < now() - interval '1 minute')",
        SWEEPER + THREAD_ERASED,
    ),
    Mutation(
        "a thread erased under somebody who reads it",
        "shared/sweeper.py",
        "SELECT id FROM threads WHERE deleted_at < now() - interval '1 minute'",
        "SELECT id FROM threads WHERE deleted_at < now()",
        SWEEPER + THREAD_ERASED,
    ),
    Mutation(
        "a thread erased under its worker",
        "shared/sweeper.py",
        "AND (status IN ('queued', 'running') OR NOT {none_waits",
        "AND (NOT {none_waits",
        SWEEPER + THREAD_ERASED,
    ),
    Mutation(
        "a conversation that lives only as long as runs without one",
        "shared/sweeper.py",
        "WHERE thread_id IS NULL AND finished_at < now()",
        "WHERE finished_at < now()",
        SWEEPER + THREAD_ERASED,
    ),
    Mutation(
        "a run that is erased so long after it was accepted",
        "shared/sweeper.py",
        "WHERE thread_id IS NULL AND finished_at < now()",
        "WHERE thread_id IS NULL AND created_at < now()",
        SWEEPER + "test_a_run_without_a_thread_is_erased_so_long_after_its_end",
    ),
    Mutation(
        "a key that outlives its time",
        "shared/sweeper.py",
        "FROM idempotency_keys WHERE expires_at < now()",
        "FROM idempotency_keys WHERE expires_at < now() - interval '1 hour'",
        "tests/test_idempotency.py::test_expired_keys_are_erased_and_others_stay",
    ),
    Mutation(
        "a key that is erased in its time",
        "shared/sweeper.py",
        "FROM idempotency_keys WHERE expires_at < now()",
        "FROM idempotency_keys WHERE expires_at > now()",
        "tests/test_idempotency.py::test_expired_keys_are_erased_and_others_stay",
    ),
    Mutation(
        "a query that is refused because Redis is away",
        "shared/lanes.py",
        """            log.warning("lanes.ring_failed error=%r", away)
            return False
""",
        """            raise RuntimeError from away
""",
        SERVERS_AWAY + "test_without_redis_queries_are_still_taken_and_then_answered",
    ),
    Mutation(
        "an answer that is given up because PostgreSQL is away",
        "worker/job.py",
        "if not is_away(error) or loop.time() > give_up:",
        "if error is not None or loop.time() > give_up:",
        SERVERS_AWAY + "test_postgres_away_for_longer_than_a_lease_is_no_crash_of_anybody[stopped]",
    ),
    Mutation(
        "a process of a suspect that imports for itself what all need",
        "worker/nursery.py",
        "            importlib.import_module(module)\n",
        "            pass\n",
        "tests/test_nursery.py::test_what_was_imported_there_is_there_for_those_made_later",
    ),
    Mutation(
        "a row that fails alone and is tried again by every sweep",
        "shared/aside.py",
        "                self._until[row.id] = now + ASIDE_SECONDS\n",
        "",
        SWEEPER + "test_one_run_that_cannot_be_taken_back_keeps_no_other_from_it",
    ),
    Mutation(
        "one row that spoils a statement over many",
        "shared/database.py",
        "isinstance(error, DBAPIError) and state is not None and state[:2] in _ABOUT_ROWS",
        "isinstance(error, DBAPIError) and state is None",
        SWEEPER + "test_a_message_that_is_there_already_keeps_no_other_run_from_its_end",
    ),
    Mutation(
        "a step that ends the sweep it is of",
        "shared/sweeper.py",
        """        if is_away(error):
            raise
        failed("sweeper", name, error)""",
        """        raise""",
        SWEEPER + "test_a_step_that_fails_keeps_no_other_step_from_being_made",
    ),
    Mutation(
        "one row whose JSON Python cannot read that spoils what is read with it",
        "shared/database.py",
        "    except (ValueError, RecursionError) as unreadable:\n",
        "    except KeyError as unreadable:\n",
        SWEEPER + "test_a_row_with_odd_values_keeps_no_other_end_from_being_told[JSON too deep]",
    ),
]
