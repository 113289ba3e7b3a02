"""Keys of tenants and of operators: how one is made and what is kept of it.

A key is 256 random bits, so a plain SHA-256 of it is as hard to turn back as the key is to guess; only that is kept.
`python -m shared.keys NAME` prints a new key and the pair for `API_KEYS`, or of an operator for `OPERATOR_KEYS`; with
`--keep FILE` the pair is written there, and no second key is made.
"""

import hashlib
import re
import secrets
import sys
from pathlib import Path

TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""What a tenant or an operator can be called."""


def new_key() -> str:
    """Make a key; it is shown once and never stored."""
    return f"ar_{secrets.token_urlsafe(32)}"


def hash_key(key: bytes) -> str:
    """Return the hexadecimal SHA-256 that the settings hold."""
    return hashlib.sha256(key).hexdigest()


def main() -> None:
    """Print a new key for whoever is named on the command line, once if there is a file to keep the pair in."""
    match sys.argv[1:]:
        case [name]:
            kept = None
        case [name, "--keep", file]:
            kept = Path(file)
        case _:
            raise SystemExit("usage: python -m shared.keys NAME [--keep FILE]")
    if not TENANT.fullmatch(name):
        raise SystemExit(f"{name!r} cannot be a name: 1 to 63 characters of a-z, 0-9, _ and -, no _ or - first.")
    if kept is not None and kept.exists():
        print(f"{kept} holds the pair of a key that was made before.")  # noqa: T201
        return
    key = new_key()
    pair = f"{name}:{hash_key(key.encode())}"
    if kept is not None:
        kept.write_text(f"{pair}\n")
    print(f"key (give it to its holder, it is not kept):  {key}")  # noqa: T201
    print(f"pair (for API_KEYS, or for OPERATOR_KEYS):    {pair}")  # noqa: T201


if __name__ == "__main__":
    main()
