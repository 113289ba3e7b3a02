"""The soak without one of its invariants, each in turn: the history that was doctored to break it is not found out."""

from tests.faults.invariants import INVARIANTS
from tests.mutations.mutation import Mutation

MUTATIONS = [
    Mutation(
        f"nobody checks that {invariant.__name__.replace('_', ' ')}",
        f"{invariant.__module__.replace('.', '/')}.py",
        f"    {invariant.__name__},\n",
        "",
        f"tests/faults/test_invariants.py::test_a_doctored_history_is_found_out[{invariant.__name__}]",
    )
    for invariant in INVARIANTS
]
