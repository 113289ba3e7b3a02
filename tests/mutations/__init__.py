"""Breaks the code in known ways, a law each, and demands that a named test turns red: `python -m tests.mutations`."""
