"""What the pages' sessions and answers must not allow, broken one by one."""

from tests.mutations.mutation import Mutation

SESSIONS = "tests/acceptance/test_sessions.py::"
PAGES = "tests/acceptance/test_pages.py::"

MUTATIONS = [
    Mutation(
        "a session that other sites can use",
        "api/requests/sessions.py",
        'if PAGE_HEADER not in request.headers or site != "same-origin":',
        "if PAGE_HEADER not in request.headers:",
        SESSIONS + "test_another_site_can_do_nothing_with_a_session",
    ),
    Mutation(
        "a session that nobody has signed",
        "api/requests/sessions.py",
        "if not hmac.compare_digest(signature, self._signature(name, claims)):",
        "if not signature:",
        SESSIONS + "test_a_forged_cookie_is_none",
    ),
    Mutation(
        "a sign-in code that is valid twice",
        "api/console/codes.py",
        "await self._redis.getdel(self._name(code))",
        "await self._redis.get(self._name(code))",
        SESSIONS + "test_a_code_signs_in_once",
    ),
    Mutation(
        "pages without a policy of their own",
        "api/console/files.py",
        '"Content-Security-Policy": POLICY',
        '"X-Policy": POLICY',
        PAGES + "test_a_page_loads_only_what_is_served_here",
    ),
    Mutation(
        "a session of a tenant that opens what is an operator's",
        "api/requests/sessions.py",
        'purpose = b"session" if cookie == COOKIE else b"operator session"',
        'purpose = b"session"',
        SESSIONS + "test_the_two_kinds_of_sessions_are_signed_apart",
    ),
    Mutation(
        "a session of an operator that other sites can use",
        "api/requests/sessions.py",
        """            return None
        if request.method not in _SAFE_METHODS:
            check_page(request)
        return OperatorSession(name, expires_at)""",
        """            return None
        return OperatorSession(name, expires_at)""",
        SESSIONS + "test_an_operators_key_becomes_a_session_that_acts_as_the_operator",
    ),
    Mutation(
        "figures of a minute that count what ended in the next",
        "api/operations/figures.py",
        "FROM runs WHERE finished_at >= {{since}} AND finished_at < {{until}}",
        "FROM runs WHERE finished_at >= {{since}}",
        "tests/integration/api/operations/test_recorder.py::test_minutes_are_recorded_from_the_rows_once_and_for_a_day",
    ),
    Mutation(
        "a receiver's secrets on the operations page",
        "api/operations/board.py",
        """return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}\"""",
        "return url",
        "tests/acceptance/test_ops_page.py::test_an_operator_sees_the_service_breathe",
    ),
]
