"""What DATABASE_URL and REDIS_URL promise, broken one by one."""

from tests.mutations.mutation import Mutation

WAYS = "tests/acceptance/test_ways_to_the_servers.py::"
ROLES = "tests/acceptance/test_database_roles.py::"

MUTATIONS = [
    Mutation(
        "a connection to Redis that is written to after it was given up",
        "shared/redis.py",
        "        if self._writer is None:\n            raise Unreachable",
        "        if False:\n            raise Unreachable",
        "tests/integration/shared/test_redis.py"
        "::test_a_command_that_is_about_to_be_sent_as_all_connections_are_given_up_fails_as_on_a_closed_one",
    ),
    Mutation(
        "a right that nothing needs",
        "shared/migrations/grants.py",
        '"messages": {API: "SELECT, INSERT, DELETE", WORKER: "INSERT"}',
        '"messages": {API: "SELECT, INSERT, DELETE", WORKER: "SELECT, INSERT"}',
        "tests/acceptance/test_database_roles.py::test_the_whole_service_works_with_these_rights_and_with_none_less",
    ),
    Mutation(
        "rights that are left where they are not listed",
        "shared/migrations/grants.py",
        '            driver.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(everything, role))\n',
        "",
        ROLES + "test_migrations_take_back_what_is_not_listed_and_leave_the_tables_of_others_alone",
    ),
    Mutation(
        "agents that get the worker's own database",
        "worker/app.py",
        "return ours if server is None else database.connect(self._settings, connections, server)",
        "return ours",
        ROLES + "test_the_tool_of_an_agent_reaches_only_its_own_tables[alone]",
    ),
    Mutation(
        "triggers that find the tables of whoever is there",
        "shared/migrations/versions/0014_definers.py",
        " SET search_path = {schema}, pg_temp",
        "",
        ROLES + "test_a_table_of_the_role_takes_no_place_of_ours_in_a_trigger",
    ),
    Mutation(
        "statements prepared behind PgBouncer",
        "shared/database/engine.py",
        "        if not direct:\n            connection.prepare_threshold = None\n",
        "        if not direct:\n",
        WAYS + "test_by_way_of_pgbouncer[transaction]",
    ),
    Mutation(
        "versions kept in whatever schema has a table of that name",
        "shared/migrations/env.py",
        ', version_table_schema=attributes["schema"]',
        "",
        WAYS + "test_a_role_with_odd_defaults_an_odd_password_and_a_schema_of_its_own",
    ),
    Mutation(
        "keys of arq outside the prefix",
        "shared/redis_names.py",
        'return f"{self.prefix}arq:job:"',
        'return "arq:job:"',
        WAYS + "test_two_services_share_a_redis_with_users_who_may_do_what_the_docs_say_and_no_more",
    ),
    Mutation(
        "a password with an @ taken for another host",
        "shared/server_urls.py",
        'if address.count("@") > bool(user):',
        "if not address:",
        "tests/integration/shared/test_server_urls.py::test_a_database_that_cannot_be_reached_by_any_means_stops_the_start",
    ),
    Mutation(
        "a certificate of any name taken for that of Redis",
        "shared/server_urls.py",
        'tls.setdefault("ssl_check_hostname", checked)',
        'tls.setdefault("ssl_check_hostname", False)',
        "tests/integration/shared/test_server_urls.py::test_a_redis_is_named_by_a_url",
    ),
    Mutation(
        "statements prepared anew after each transaction that read",
        "shared/database/hang_detector.py",
        "        if self.pgconn.transaction_status == TransactionStatus.INTRANS:\n",
        "        if self.pgconn.transaction_status == TransactionStatus.UNKNOWN:\n",
        "tests/integration/shared/database/test_engine.py::test_what_is_prepared_outlives_a_rollback",
    ),
    Mutation(
        "a dependency that is run in a thread",
        "api/dependencies.py",
        "async def _url_of(",
        "def _url_of(",
        "tests/acceptance/test_openapi.py::test_no_dependency_is_run_in_a_thread",
    ),
]
