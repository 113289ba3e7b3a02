"""Keys of tenants and of operators: how they are made and stored.

A key is 256 random bits, so a plain SHA-256 of it is as hard to turn back as the key is to guess; only that is kept.
`agent-relay key NAME` prints a new key and the pair for `API_KEYS`, or of an operator for `OPERATOR_KEYS`.
"""

import argparse
import hashlib
import re
import secrets
from collections.abc import Sequence

TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""The names that a tenant or an operator may have."""


def new_key() -> str:
    """Make a key; it is shown once and never stored."""
    return f"ar_{secrets.token_urlsafe(32)}"


def hash_key(key: bytes) -> str:
    """Return the hexadecimal SHA-256 that the settings hold."""
    return hashlib.sha256(key).hexdigest()


def main(words: Sequence[str] | None = None) -> None:
    """Print a new key for the name on the command line."""
    parser = argparse.ArgumentParser(
        prog="agent-relay key",
        description="Print a new API key, and the pair of a name and its hash for API_KEYS or OPERATOR_KEYS. Nothing "
        "is stored. `agent-relay keys create` makes keys in the database instead, which can be listed and revoked.",
    )
    parser.add_argument("name", metavar="NAME", help="the tenant that it belongs to, or the operator")
    name: str = parser.parse_args(words).name
    if not TENANT.fullmatch(name):
        raise SystemExit(f"{name!r} cannot be a name: 1 to 63 characters of a-z, 0-9, _ and -, no _ or - first.")
    key = new_key()
    pair = f"{name}:{hash_key(key.encode())}"
    print(f"key (give it to its holder, it is not kept):  {key}")  # noqa: T201
    print(f"pair (for API_KEYS, or for OPERATOR_KEYS):    {pair}")  # noqa: T201


if __name__ == "__main__":
    main()
