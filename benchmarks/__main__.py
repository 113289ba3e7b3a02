"""Run every benchmark, one after the other: `python -m benchmarks`, which is `make bench-relay`."""

import subprocess
import sys

ALL = ("first_event", "delay", "answer_length", "tokens", "idle_streams", "live_share")


def main() -> None:
    """Run them all, each in a process of its own; the arguments go to each."""
    for name in ALL:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
