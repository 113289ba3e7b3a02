"""Run the benchmarks of the relay, one after the other: `python -m benchmarks`, which is `make bench-relay`."""

import subprocess
import sys
from collections.abc import Iterable

ALL = ("first_event", "delay", "answer_length", "tokens", "idle_streams", "live_share")


def run(names: Iterable[str]) -> None:
    """Run these, each in a process of its own; the arguments go to each."""
    for name in names:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=True)


if __name__ == "__main__":
    run(ALL)
