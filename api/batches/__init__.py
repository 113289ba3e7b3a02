"""Batches: taken in while they arrive, read whole, and their results followed as they come."""
