"""What DATABASE_URL and REDIS_URL promise, broken one by one."""

from tests.mutations.mutation import Mutation

WAYS = "tests/test_ways_to_the_servers.py::"

MUTATIONS = [
    Mutation(
        "statements prepared behind PgBouncer",
        "shared/database.py",
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
        "shared/names.py",
        'return f"{self.prefix}arq:job:"',
        'return "arq:job:"',
        WAYS + "test_two_services_share_a_redis_with_users_who_may_do_what_the_docs_say_and_no_more",
    ),
    Mutation(
        "a password with an @ taken for another host",
        "shared/servers.py",
        'if address.count("@") > bool(user):',
        "if not address:",
        "tests/test_servers.py::test_a_database_that_cannot_be_reached_by_any_means_stops_the_start",
    ),
    Mutation(
        "a certificate of any name taken for that of Redis",
        "shared/servers.py",
        'tls.setdefault("ssl_check_hostname", checked)',
        'tls.setdefault("ssl_check_hostname", False)',
        "tests/test_servers.py::test_a_redis_is_named_by_a_url",
    ),
]
