"""What is promised of who calls, broken one by one."""

from tests.mutations.mutation import Mutation

IDENTITY = "tests/acceptance/test_identity.py::"

MUTATIONS = [
    Mutation(
        "a name that is the same user in every tenant",
        "api/requests/users.py",
        "uuid5(uuid5(_NAMED, tenant), name)",
        "uuid5(_NAMED, name)",
        "tests/unit/api/requests/test_users.py::test_a_name_is_another_user_in_another_tenant",
    ),
    Mutation(
        "a user whose UUID is taken for a name",
        "api/requests/users.py",
        "    if _UUID.fullmatch(name):",
        "    if False:",
        "tests/unit/api/requests/test_users.py::test_a_uuid_is_itself_however_it_is_written",
    ),
    Mutation(
        "two keys, of which one is believed",
        "api/requests/identity.py",
        "    if keys:\n        raise Refused(400,",
        "    if False:\n        raise Refused(400,",
        IDENTITY + "test_two_keys_are_one_too_many",
    ),
    Mutation(
        "one user for all bearer keys",
        "api/requests/users.py",
        "uuid5(_OF_KEYS, key.reference.hex())",
        "_OF_KEYS",
        IDENTITY + "test_a_bearer_key_without_a_user_is_a_user_of_its_own",
    ),
]
