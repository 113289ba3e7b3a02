"""Run everything from this checkout: `python -m shared.embedded`, which is `make run`."""

from shared.stopping import exit_when_told

if __name__ == "__main__":
    exit_when_told()  # Before the imports that take long.

import argparse
from pathlib import Path

from shared.embedded.home import Home
from shared.embedded.supervisor import CHECKOUT, Supervisor
from shared.embedded.surroundings import Surroundings


def main() -> None:
    """Lock the home and run until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m shared.embedded", description=__doc__)
    parser.add_argument("--home", type=Path, default=CHECKOUT / ".local", help="folder of the data (default: .local)")
    home_path: Path = parser.parse_args().home
    surroundings = Surroundings.read()
    with Home(home_path) as home:
        raise SystemExit(Supervisor(home, surroundings).run())


if __name__ == "__main__":
    main()
