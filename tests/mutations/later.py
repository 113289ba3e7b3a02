"""What is promised of runs that start later, broken one by one."""

from tests.mutations.mutation import Mutation

START = "tests/integration/shared/runs/test_start.py::"
LATER = "tests/acceptance/test_later.py::"
SCHEDULES = "tests/acceptance/test_schedules.py::"
CRON = "tests/unit/api/schedules/test_cron.py::"

MUTATIONS = [
    Mutation(
        "a run that is claimed before it has started",
        "shared/runs/claim.py",
        "      AND NOT {run}.starts_later\n",
        "",
        START + "test_one_whose_time_has_come_is_started_once_and_then_as_any_other",
    ),
    Mutation(
        "a thread that is busy with what starts later",
        "shared/runs/accept.py",
        "{IS_UNFINISHED} AND NOT starts_later",
        "{IS_UNFINISHED}",
        START + "test_a_thread_is_not_busy_with_it_and_an_interrupt_leaves_it_alone",
    ),
    Mutation(
        "a run that starts although its thread was deleted",
        "shared/runs/start.py",
        "            WHERE deleted_at IS NULL FOR NO KEY UPDATE",
        "            FOR NO KEY UPDATE",
        START + "test_one_of_a_deleted_thread_does_not_start",
    ),
    Mutation(
        "a run that is called for as the thread's next before it has started",
        "shared/runs/finish.py",
        "    WHERE status = 'queued' AND due_at <= now() AND NOT starts_later AND id = (",
        "    WHERE status = 'queued' AND due_at <= now() AND id = (",
        START + "test_of_a_thread_it_takes_its_place_and_its_message_when_it_starts",
    ),
    Mutation(
        "runs that start later and take the room of those that wait",
        "shared/runs/queue_limits.py",
        "AND lane = 'interactive' AND NOT starts_later",
        "AND lane = 'interactive'",
        START + "test_they_are_counted_apart_from_those_that_wait",
    ),
    Mutation(
        "a batch that begins another run before its start",
        "shared/batches/concurrency.py",
        "(batches.start_at IS NULL OR batches.start_at <= now())",
        "true",
        LATER + "test_a_batch_that_lost_a_run_before_its_start_begins_no_other",
    ),
    Mutation(
        "a time that clocks give twice, told twice",
        "api/schedules/cron.py",
        "        if time > after:\n",
        "        if True:\n",
        CRON + "test_a_time_that_exists_twice_comes_once",
    ),
    Mutation(
        "a schedule that outlives its key",
        "api/schedules/ticker.py",
        "return key if key is not None and key.tenant == schedule.tenant else None",
        "return key or ApiKey(schedule.tenant, b'')",
        SCHEDULES + "test_a_key_that_is_gone_pauses_its_schedules_and_another_resumes_them",
    ),
    Mutation(
        "a missed tick caught up again and again",
        "api/schedules/ticker.py",
        "next_times(schedule.cron, schedule.timezone, schedule.now)",
        "next_times(schedule.cron, schedule.timezone, schedule.next_times[0])",
        SCHEDULES + "test_what_was_missed_is_caught_up_once",
    ),
    Mutation(
        "a tick whose run is stored before the tick is",
        "api/schedules/ticker.py",
        "                reached(Failpoint.TICK_MADE)\n",
        "                await connection.commit()\n                reached(Failpoint.TICK_MADE)\n",
        SCHEDULES + "test_a_tick_makes_one_run_whoever_dies_over_it[tick_made]",
    ),
    Mutation(
        "a tick that is given up where the queue has no room",
        "api/schedules/ticker.py",
        "            return _Refused(limit, message, again=True)\n",
        "            return _Refused(limit, message)\n",
        SCHEDULES + "test_a_tick_without_room_in_the_queue_is_tried_again",
    ),
    Mutation(
        "a tick without a run that nobody is told of",
        "api/schedules/ticker.py",
        '"error": to_json({"code": outcome.code, "message": outcome.message}).decode(),',
        '"error": None,',
        SCHEDULES + "test_without_a_worker_a_tick_makes_no_run_and_says_why",
    ),
    Mutation(
        "a schedule that anybody deletes",
        "api/schedules/rows.py",
        "WHERE id = :id AND tenant = :tenant AND user_id = :user_id RETURNING id",
        "WHERE id = :id AND :tenant <> '' AND :user_id IS NOT NULL RETURNING id",
        SCHEDULES + "test_what_is_of_somebody_else_is_not_there",
    ),
    Mutation(
        "failures of a schedule that count for ever",
        "api/schedules/rows.py",
        "WHERE status = 'failed' AND NOT has_succeeded",
        "WHERE status = 'failed' OR has_succeeded",
        SCHEDULES + "test_its_failures_are_counted_until_one_succeeds",
    ),
]
