"""What batches promise, broken piece by piece."""

from tests.mutations.mutation import Mutation

BATCHES = "tests/acceptance/test_batches.py::"
COUNTS = "tests/integration/shared/batches/test_counts.py::"
VALIDATION = "tests/unit/api/requests/test_validation.py::"
ITEMS = "tests/unit/api/batches/test_splitter.py::"
SWEEPER = "tests/integration/shared/maintenance/test_sweeper.py::"
TABLES = "shared/migrations/versions/0005_batches.py"

MUTATIONS = [
    Mutation(
        "a place of a result taken before the commit",
        TABLES,
        "VALUES (NEW.batch_id, ends, NEW.id)",
        "VALUES (NEW.batch_id, pg_current_xact_id()::text::integer, NEW.id)",
        COUNTS + "test_whoever_has_seen_a_place_has_seen_all_before_it",
    ),
    Mutation(
        "a batch locked by an end that is not committed",
        TABLES,
        "DEFERRABLE INITIALLY DEFERRED",
        "DEFERRABLE INITIALLY IMMEDIATE",
        COUNTS + "test_whoever_has_seen_a_place_has_seen_all_before_it",
    ),
    Mutation(
        "batches locked in any order by those who end many runs",
        "shared/runs/finish.py",
        "ORDER BY id FOR NO KEY UPDATE",
        "ORDER BY (SELECT min(deadline_at) FROM {touched} WHERE batch_id = batches.id) FOR NO KEY UPDATE",
        COUNTS + "test_sweepers_that_end_runs_of_the_same_batches_do_not_wait_for_each_other",
    ),
    Mutation(
        "a batch refused that was stored",
        "shared/batches/accept.py",
        "    return await store(database, write)\n",
        "    async with database.begin() as connection:\n        return await write(connection)\n",
        "tests/integration/test_lost_replies.py::test_a_batch_that_was_stored_is_accepted",
    ),
    Mutation(
        "an end of a run that was queued not counted",
        TABLES,
        "WHEN (NEW.batch_id IS NOT NULL AND OLD.finished_at IS NULL",
        "WHEN (NEW.batch_id IS NOT NULL AND OLD.status = 'running'",
        COUNTS + "test_every_arrow_is_counted",
    ),
    Mutation(
        "a batch that ends before its last run",
        TABLES,
        "WHERE id = NEW.batch_id AND total = ends;",
        "WHERE id = NEW.batch_id AND total <= ends + 1;",
        COUNTS + "test_a_batch_that_is_cancelled_starts_nothing_and_ends_what_waits",
    ),
    Mutation(
        "more runs of a batch at once than may be",
        TABLES,
        "SELECT max_running - (",
        "SELECT max_running + 1 - (",
        COUNTS + "test_only_so_many_runs_of_a_batch_are_to_be_had_at_once",
    ),
    Mutation(
        "room in a batch filled by several at once",
        TABLES,
        "PERFORM pg_advisory_xact_lock(hashtextextended(batch::text, 0));",
        "",
        COUNTS + "test_of_several_who_see_room_in_a_batch_one_fills_it",
    ),
    Mutation(
        "a run of a cancelled batch begun",
        "shared/runs/claim.py",
        "batches.status = 'cancelling'",
        "batches.status = 'cancelled'",
        COUNTS + "test_a_batch_that_is_cancelled_starts_nothing_and_ends_what_waits",
    ),
    Mutation(
        "the time of a run of a batch counted from acceptance",
        "shared/runs/claim.py",
        "least(extract(epoch FROM run.deadline_at - now()),",
        "greatest(extract(epoch FROM run.deadline_at - now()),",
        COUNTS + "test_a_run_of_a_batch_has_its_time_from_when_it_begins",
    ),
    Mutation(
        "connections that runs of batches have to themselves",
        "worker/app.py",
        "(Lane.BATCH, self._database_of_batches)",
        "(Lane.BATCH, self._database)",
        "tests/acceptance/test_batch_processes.py::test_ends_of_a_batch_that_wait_for_each_other_hold_nobody_else_up",
    ),
    Mutation(
        "what succeeded asked again in a retry",
        "shared/batches/retry.py",
        "WHERE batch_id = :batch_id AND status = 'failed'",
        "WHERE batch_id = :batch_id AND status <> 'cancelled'",
        COUNTS + "test_what_failed_is_retried_as_a_batch_of_its_own",
    ),
    Mutation(
        "good items of a batch stored without the bad ones",
        "api/batches/upload.py",
        "if head is None or self._errors:",
        "if head is None:",
        BATCHES + "test_a_bad_item_is_named_and_nothing_is_stored",
    ),
    Mutation(
        "a batch asked to wait for room that there never is",
        "api/batches/upload.py",
        "settings.most_items_of_a_batch",
        "settings.max_batch_items",
        "tests/integration/shared/runs/test_queue_limits.py::test_batches_count_against_their_own_limits_only",
    ),
    Mutation(
        "a custom_id taken twice",
        "api/batches/upload.py",
        "self._custom_ids.add(item.custom_id)",
        "self._custom_ids.add(item.query)",
        BATCHES + "test_a_bad_item_is_named_and_nothing_is_stored",
    ),
    Mutation(
        "an item that no column can hold",
        "api/batches/upload.py",
        "if item is None or item.metadata or len(raw) > LONG_BYTES or may_be_unstorable(raw):",
        "if item is None or item.metadata or len(raw) > LONG_BYTES:",
        BATCHES + "test_a_bad_item_is_named_and_nothing_is_stored",
    ),
    Mutation(
        "a long text looked at from its beginning, again and again",
        "api/batches/splitter.py",
        "                self.at = quote\n                return None",
        "                return None",
        ITEMS + "test_no_byte_of_a_text_is_looked_at_twice",
    ),
    Mutation(
        "a body of nothing but strings cut without a pause",
        "api/batches/splitter.py",
        "            elif number % TOKENS_A_STEP == 0:\n                yield None",
        "            elif number < 0:\n                yield None",
        ITEMS + "test_who_cuts_lets_others_go_on_however_much_there_is_to_look_at",
    ),
    Mutation(
        "a number that is refused in any case worked out",
        "api/requests/validation.py",
        "    return math.inf\n\n\n_DECODER",
        "    return int(digits)\n\n\n_DECODER",
        VALIDATION + "test_one_that_is_refused_in_any_case_is_not_worked_out",
    ),
    Mutation(
        "a number that double precision reaches taken for one out of range",
        "api/requests/validation.py",
        "_SURELY_READ_DIGITS = 310\n",
        "_SURELY_READ_DIGITS = 300\n",
        VALIDATION + "test_a_whole_number_that_double_precision_reaches_is_read_to_the_last_digit",
    ),
    Mutation(
        "something behind the object of a batch ignored",
        "api/batches/splitter.py",
        "if self._place is not _Place.AFTER or self._tokens.buffer.strip(_SPACE):",
        "if self._place is not _Place.AFTER:",
        ITEMS + "test_what_is_not_one_json_object_is_refused",
    ),
    Mutation(
        "a result told again to who goes on behind it",
        "api/batches/queries.py",
        "WHERE batch_id = :batch_id AND place > :after",
        "WHERE batch_id = :batch_id AND place >= :after",
        BATCHES + "test_a_batch_is_accepted_answered_and_its_results_followed",
    ),
    Mutation(
        "a sweeper that never looks beyond the first thousand",
        "shared/maintenance/sweeper.py",
        "(due.at, due.id) if len(members) == MOST_DUE else (None, None)",
        "(None, None)",
        SWEEPER + "test_a_lost_ring_is_found_behind_however_many_that_wait",
    ),
    Mutation(
        "a run that was just popped rung again",
        "shared/maintenance/sweeper.py",
        "lost = [member for member in look.absent if member in absent]",
        "lost = list(absent)",
        SWEEPER + "test_a_run_that_was_taken_in_between_is_not_rung_again",
    ),
    Mutation(
        "the runs of a batch erased before it",
        "shared/maintenance/retention.py",
        "AND batch_id IS NULL",
        "",
        SWEEPER + "test_a_batch_is_erased_as_a_whole_a_while_after_its_end",
    ),
]
