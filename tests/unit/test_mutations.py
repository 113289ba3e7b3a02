"""Every mutation still fits the code it breaks, and names a test that is there; `make test-mutations` runs them."""

from __future__ import annotations

import ast

import pytest

from tests.mutations.__main__ import MUTATIONS, ROOT
from tests.mutations.mutation import Mutation
from tests.support.find_tests import find_tests


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks)
def test_a_mutation_fits_the_code_and_names_its_test(mutation: Mutation) -> None:
    broken = mutation.broken(ROOT)
    path, _, test = mutation.test.partition("::")
    name, _, _ = test.partition("[")

    if mutation.path.endswith(".py"):
        ast.parse(broken)  # An error of syntax would turn every test red.
    assert f"def {name}(" in (ROOT / path).read_text()


@pytest.mark.parametrize(
    ("path", "test"),
    [
        ("shared/runs/claim.py", "tests/integration/shared/runs/test_transitions.py::test_a_run_is_claimed_once"),
        ("shared/event_log.py", "tests/unit/shared/test_event_log.py"),
        ("api/queries.py", "tests/integration/api/test_queries.py"),
        ("worker/deferred_tools.py", "tests/unit/worker/execution/test_steps.py"),
    ],
)
def test_the_find_tests_a_file_are_found(path: str, test: str) -> None:
    assert test in find_tests(path)


def test_a_file_that_no_test_names_has_none() -> None:
    assert find_tests("shared/no_such_file.py") == []
