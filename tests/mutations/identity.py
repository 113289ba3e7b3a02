"""What is promised of who calls, broken one by one."""

from tests.mutations.mutation import Mutation

IDENTITY = "tests/acceptance/test_identity.py::"
PROVIDER = "tests/acceptance/test_identity_provider.py::"
TOKENS = "tests/acceptance/test_user_tokens.py::"

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
        "a key that becomes another user as it is rotated",
        "shared/api_keys.py",
        '"own_user": ApiKey.of_row(former).own_user,',
        '"own_user": None,',
        "tests/acceptance/test_api_keys.py::test_the_successor_of_a_key_is_the_same_user_where_none_is_named",
    ),
    Mutation(
        "a token that allows what it does not say",
        "api/requests/user_tokens.py",
        "    if token.read_only and not reads:",
        "    if False:",
        TOKENS + "test_a_token_that_only_reads",
    ),
    Mutation(
        "a token of some threads that finds the others",
        "api/requests/user_tokens.py",
        "        if thread_of_run not in token.threads:",
        "        if False:",
        TOKENS + "test_for_a_token_of_some_threads_nothing_else_exists",
    ),
    Mutation(
        "a token of some threads that asks without one",
        "api/submission.py",
        "        caller.check_thread(new.thread_id)\n",
        "",
        TOKENS + "test_for_a_token_of_some_threads_nothing_else_exists",
    ),
    Mutation(
        "a token of some threads that has files of the others read to it",
        "api/submission.py",
        "        if caller.threads is not None and any(",
        "        if False and any(",
        TOKENS + "test_a_token_of_some_threads_attaches_no_stored_file_since_it_may_be_of_another_thread",
    ),
    Mutation(
        "tokens that make tokens",
        "api/requests/user_tokens.py",
        '("/user-tokens", "/usage", "/webhooks/secret", "/console/")',
        '("/usage", "/webhooks/secret", "/console/")',
        TOKENS + "test_no_token_makes_rights_that_outlive_it_or_reads_what_is_of_the_tenant",
    ),
    Mutation(
        "a token that asks more agents than its key",
        "api/requests/user_tokens.py",
        "        if claims.agents is not None:",
        "        if False:",
        TOKENS + "test_a_token_asks_no_agents_but_its_own",
    ),
    Mutation(
        "a revoked token that goes on",
        "api/requests/user_tokens.py",
        "        if self._keys.is_void(key.tenant, claims.sub, claims.iat):",
        "        if False:",
        TOKENS + "test_revoked_tokens_are_void_everywhere_and_their_streams_end",
    ),
    Mutation(
        "streams of tokens that outlive them",
        "api/requests/rate_limits.py",
        "call_later(caller.token.seconds_left, self.end)",
        "call_later(3600, self.end)",
        TOKENS + "test_an_expired_token_is_void_and_its_streams_end",
    ),
    Mutation(
        "another JWT that passes for a token",
        "api/requests/user_tokens.py",
        '        if decoded["header"].get("typ") != _TYPE or key is None',
        "        if key is None",
        TOKENS + "test_a_forged_token_is_as_wrong_as_any_key",
    ),
    Mutation(
        "a token of the provider for another service",
        "api/requests/identity_provider.py",
        "                audience=self._audience,\n",
        '                audience=["https://another.example.com"],\n',
        PROVIDER + "test_what_is_not_the_providers_is_as_wrong_as_any_key",
    ),
    Mutation(
        "a token of the provider without an end",
        "api/requests/identity_provider.py",
        '["exp", "sub", "aud", "iss"]',
        '["sub", "aud", "iss"]',
        PROVIDER + "test_what_is_not_the_providers_is_as_wrong_as_any_key",
    ),
    Mutation(
        "callers that have keys fetched",
        "api/requests/identity_provider.py",
        "            if time.monotonic() - self._tried_at < AGAIN_SECONDS:",
        "            if False:",
        PROVIDER + "test_unknown_keys_make_no_fetches",
    ),
    Mutation(
        "a secret that passes for a public key",
        "api/requests/identity_provider.py",
        '            if given.get("use", "sig") != "sig" or not algorithms:',
        "            if False:",
        PROVIDER + "test_what_is_no_public_key_is_none",
    ),
    Mutation(
        "one user for all bearer keys",
        "shared/api_keys.py",
        "uuid5(_USERS_OF_KEYS, self.reference.hex())",
        "_USERS_OF_KEYS",
        IDENTITY + "test_a_bearer_key_without_a_user_is_a_user_of_its_own",
    ),
]
