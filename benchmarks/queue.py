"""Run the benchmarks of the queue, one after the other: `python -m benchmarks.queue`, which is `make bench-queue`."""

from benchmarks.__main__ import run

ALL = ("pick_up", "crowded", "throughput", "submissions", "recovery", "step_cost", "rolling", "waiting")


if __name__ == "__main__":
    run(ALL)
