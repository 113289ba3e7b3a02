"""What an idempotency key promises, broken one by one."""

from tests.mutations.mutation import Mutation

TESTS = "tests/acceptance/test_idempotency.py::"

MUTATIONS = [
    Mutation(
        "the key kept in a transaction of its own",
        "shared/runs/accept.py",
        "    return await store(database, lambda connection: accept_in(connection, asked, key, admission))\n",
        """    async with database.begin() as connection:
        await keep(connection, key, new_id())
    return await store(database, lambda connection: accept_in(connection, asked, None, admission))
""",
        TESTS + "test_a_key_and_what_it_created_are_stored_together_or_not_at_all[runs]",
    ),
    Mutation(
        "a key that another call is using, waited for",
        "shared/idempotency.py",
        "SELECT pg_try_advisory_xact_lock(:lock)",
        "SELECT pg_advisory_xact_lock(:lock) IS NOT NULL",
        TESTS + "test_who_comes_before_the_first_has_committed_waits_a_while_and_holds_no_connection",
    ),
    Mutation(
        "a key for any body",
        "shared/idempotency.py",
        "if earlier.body_hash != key.body_hash:",
        "if not earlier.body_hash:",
        TESTS + "test_a_key_is_good_for_one_body",
    ),
    Mutation(
        "a key of all users",
        "api/requests/idempotency.py",
        "user_id=caller.user_id,",
        "user_id=type(caller.user_id)(int=0),",
        TESTS + "test_a_key_is_of_its_tenant_its_user_and_its_route",
    ),
]
