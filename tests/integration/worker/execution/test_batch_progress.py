"""What the unit test of that name shows on a fake, on a real Redis."""

from tests.unit.worker.execution.test_batch_progress import *  # noqa: F403  (its tests, and the fixtures that they use)
