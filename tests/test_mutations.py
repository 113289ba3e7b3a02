"""Every mutation still fits the code it breaks, and names a test that is there; `make test-mutations` runs them."""

from __future__ import annotations

import ast

import pytest

from tests.mutations.__main__ import MUTATIONS, ROOT
from tests.mutations.mutation import Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks)
def test_a_mutation_fits_the_code_and_names_its_test(mutation: Mutation) -> None:
    broken = mutation.broken(ROOT)
    path, _, test = mutation.test.partition("::")
    name, _, _ = test.partition("[")

    if mutation.path.endswith(".py"):
        ast.parse(broken)  # An error of syntax would turn every test red.
    assert f"def {name}(" in (ROOT / path).read_text()
