"""Keys of tenants and of operators: how one is made and what is kept of it.

A key is 256 random bits, so a plain SHA-256 of it is as hard to turn back as the key is to guess; only that is kept.
`python -m shared.keys NAME` prints a new key and the pair for `API_KEYS`, or of an operator for `OPERATOR_KEYS`.
"""

import hashlib
import secrets
import sys


def new_key() -> str:
    """Make a key; it is shown once and never stored."""
    return f"ar_{secrets.token_urlsafe(32)}"


def hash_key(key: bytes) -> str:
    """Return the hexadecimal SHA-256 that the settings hold."""
    return hashlib.sha256(key).hexdigest()


def main() -> None:
    """Print a new key for whoever is named on the command line."""
    if len(sys.argv) != 2:  # noqa: PLR2004
        raise SystemExit("usage: python -m shared.keys NAME")
    key = new_key()
    print(f"key (give it to its holder, it is not kept):  {key}")  # noqa: T201
    print(f"pair (for API_KEYS, or for OPERATOR_KEYS):    {sys.argv[1]}:{hash_key(key.encode())}")  # noqa: T201


if __name__ == "__main__":
    main()
