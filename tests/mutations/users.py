"""What is promised of the export and the deletion of a user's data, broken one by one."""

from tests.mutations.mutation import Mutation

EXPORT = "tests/acceptance/test_export.py::"
DELETION = "tests/acceptance/test_user_deletion.py::"
LEFT = DELETION + "test_nothing_of_a_user_is_left_and_nobody_else_misses_anything"

MUTATIONS = [
    Mutation(
        "an export that ends with the first page",
        "api/routes/users.py",
        """        yield found.rows
        if len(found.rows) <= ROWS_AT_ONCE and not found.ended_early:""",
        """        yield found.rows
        if found.rows:""",
        EXPORT + "test_an_export_holds_what_all_the_lists_do",
    ),
    Mutation(
        "an export for a key that may only ask",
        "api/requests/validation.py",
        '"/users/": Scope.READ',
        '"/users/": Scope.ASK',
        "tests/acceptance/test_api_keys.py::test_a_scope_allows_its_calls_and_no_others[ask]",
    ),
    Mutation(
        "a deletion that erases what the user makes later",
        "api/erasing.py",
        "{_OF_USER} AND created_at <= :created_at",
        "{_OF_USER} AND created_at <= now() AND CAST(:created_at AS text) IS NOT NULL",
        LEFT,
    ),
    Mutation(
        "a deletion that waits for runs under way",
        "api/erasing.py",
        "        while await self._cancel_some(values):\n            pass\n",
        "",
        DELETION + "test_who_follows_is_told_the_end_and_another_user_finds_no_deletion",
    ),
    Mutation(
        "a deletion that leaves the event logs",
        "api/erasing.py",
        "            await self._event_log.remove(*run_ids)\n",
        "            pass\n",
        LEFT,
    ),
    Mutation(
        "a deletion after which tokens of the user are valid",
        "api/erasing.py",
        "        await revoke_in(connection, owner.tenant, owner.user_id)\n",
        "",
        DELETION + "test_tokens_of_the_user_are_void_afterwards_and_some_may_not_delete",
    ),
]
