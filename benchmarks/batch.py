"""Run the benchmarks of batches, one after the other: `python -m benchmarks.batch`, which is `make bench-batch`."""

from benchmarks.__main__ import run

if __name__ == "__main__":
    run(("batch_accept", "batch_upload", "batch_beside"))
