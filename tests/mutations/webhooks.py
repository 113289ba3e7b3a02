"""What webhooks promise, broken one by one."""

from tests.mutations.mutation import Mutation

TESTS = "tests/acceptance/test_webhooks.py::"
MIGRATION = "shared/migrations/versions/0008_webhooks.py"
OF_BATCHES = "shared/migrations/versions/0009_batch_webhooks.py"

MUTATIONS = [
    Mutation(
        "a receiver that takes all that its tenant may have",
        "worker/webhooks.py",
        "OF_A_RECEIVER = 4",
        "OF_A_RECEIVER = 100",
        TESTS + "test_a_receiver_that_hangs_delays_no_other_receiver",
    ),
    Mutation(
        "a backlog that hides the other receivers of its tenant",
        "shared/webhooks/outbox.py",
        "            await connection.execute(_STEP_ASIDE, held)\n",
        "            pass\n",
        TESTS + "test_a_busy_receiver_with_more_than_is_looked_at_hides_no_other",
    ),
    Mutation(
        "a tenant whose names are never resolved and that takes all look-ups",
        "shared/webhooks/addresses.py",
        "        async with self._rooms[tenant]:\n",
        "        async with asyncio.Semaphore():\n",
        "tests/unit/shared/webhooks/test_addresses.py::test_a_tenant_whose_names_are_never_resolved_keeps_no_other_waiting",
    ),
    Mutation(
        "the webhook written after the transaction that ends the run",
        MIGRATION,
        "WHEN (NEW.webhook_url IS NOT NULL AND OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL)",
        "WHEN (NEW.webhook_url IS NOT NULL AND NEW.end_told AND NOT OLD.end_told)",
        TESTS + "test_each_way_to_end_is_written_down_once[succeeded]",
    ),
    Mutation(
        "a run that ends although its webhook could not be written",
        MIGRATION,
        "        RETURN NULL;\n    END\n",
        "        RETURN NULL;\n    EXCEPTION WHEN OTHERS THEN RETURN NULL;\n    END\n",
        TESTS + "test_an_end_and_its_delivery_are_stored_together_or_not_at_all[succeeded]",
    ),
    Mutation(
        "a webhook's address checked only where the run is created",
        "worker/webhooks.py",
        "await self._resolver.addresses(target, delivery.tenant)",
        "list(await self._resolver._look_up(target.host, target.port))",
        TESTS + "test_a_name_that_moves_to_a_private_address_is_not_followed_there",
    ),
    Mutation(
        "a webhook's name resolved again after it was checked",
        "worker/webhooks.py",
        "host=address, port=target.port",
        "host=target.host, port=target.port",
        TESTS + "test_a_name_is_resolved_once_and_that_address_is_called",
    ),
    Mutation(
        "a webhook that follows redirects",
        "worker/webhooks.py",
        "follow_redirects=False",
        "follow_redirects=True",
        TESTS + "test_a_redirect_is_not_followed_and_fails",
    ),
    Mutation(
        "a webhook with a new id at every attempt",
        "shared/webhooks/message.py",
        "return sign(str(delivery.id),",
        'return sign(f"{delivery.id}-{delivery.attempt}",',
        TESTS + "test_what_fails_is_tried_again_under_the_same_id_until_it_is_taken",
    ),
    Mutation(
        "an overtaken attempt at a webhook that has the last word",
        "shared/webhooks/outbox.py",
        "WHERE id = :id AND attempts = :attempt AND status = 'pending'",
        "WHERE id = :id AND CAST(:attempt AS int) > 0 AND status = 'pending'",
        TESTS + "test_an_attempt_that_was_overtaken_stores_nothing",
    ),
    Mutation(
        "a run erased before its webhook is delivered",
        "shared/webhooks/outbox.py",
        "WHERE resource_id = {table}.id AND status = 'pending')",
        "WHERE resource_id = {table}.id AND status = 'waiting')",
        TESTS + "test_what_is_still_to_be_told_is_not_erased_and_what_was_told_is",
    ),
    Mutation(
        "the webhook of a batch written after the transaction that ends it",
        OF_BATCHES,
        "WHEN (NEW.webhook_url IS NOT NULL AND OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL)",
        "WHEN (NEW.webhook_url IS NOT NULL AND OLD.finished_at IS NOT NULL)",
        TESTS + "test_each_way_in_which_a_batch_ends_is_written_down_once[the last succeeds]",
    ),
    Mutation(
        "the webhook of a batch written with its first end",
        OF_BATCHES,
        "AND OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL)",
        "AND OLD.succeeded + OLD.failed + OLD.cancelled = 0)",
        TESTS + "test_each_way_in_which_a_batch_ends_is_written_down_once[the last succeeds]",
    ),
    Mutation(
        "a batch erased before its webhook is delivered",
        "shared/maintenance/retention.py",
        'AND {none_waits("batches")}',
        "",
        TESTS + "test_a_batch_is_kept_whole_until_its_end_is_told",
    ),
    Mutation(
        "a batch that is told to an address that is not public",
        "api/routes/batches.py",
        "        if taken.head.webhook_url is not None:\n",
        "        if not taken.head.webhook_url:\n",
        TESTS + "test_a_batch_is_not_told_to_an_address_that_is_not_public",
    ),
    Mutation(
        "a retried batch of which nobody is told",
        "shared/batches/retry.py",
        "max_running, :run_seconds, webhook_url,",
        "max_running, :run_seconds, NULL,",
        TESTS + "test_what_failed_of_a_batch_is_retried_under_the_same_url",
    ),
    Mutation(
        "a delivery that cannot be made and is due for ever",
        "worker/webhooks.py",
        '            await self._settle(delivery, Attempt(error="cannot_be_sent"))\n',
        "            await asyncio.sleep(0)\n",
        TESTS + "test_a_secret_that_signs_nothing_and_a_row_with_odd_json_spoil_no_other_delivery",
    ),
]
