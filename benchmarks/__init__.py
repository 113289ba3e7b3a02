"""Measurements, each a ratio to something everybody knows. `python -m benchmarks` runs them all."""
