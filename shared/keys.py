"""API keys: how one is made and what is kept of it.

A key is 256 random bits, so a plain SHA-256 of it is as hard to turn back as the key is to guess; only that is kept.
`python -m shared.keys TENANT` prints a new key and the pair for `API_KEYS`.
"""

import hashlib
import hmac
import secrets
import sys
from collections.abc import Mapping


def new_key() -> str:
    """Make a key; it is shown once and never stored."""
    return f"ar_{secrets.token_urlsafe(32)}"


def hash_key(key: bytes) -> str:
    """Return the hexadecimal SHA-256 that `API_KEYS` holds."""
    return hashlib.sha256(key).hexdigest()


def tenant_of(key: bytes, tenants_by_hash: Mapping[str, str]) -> str | None:
    """Find the key's tenant, in a time that tells nothing about how near a wrong key came."""
    given = hash_key(key)
    found: str | None = None
    for known, tenant in tenants_by_hash.items():
        if hmac.compare_digest(given, known):
            found = tenant
    return found


def main() -> None:
    """Print a new key for the tenant named on the command line."""
    if len(sys.argv) != 2:  # noqa: PLR2004
        raise SystemExit("usage: python -m shared.keys TENANT")
    key = new_key()
    print(f"key (give it to the tenant, it is not kept): {key}")  # noqa: T201
    print(f"pair (add it to API_KEYS):                   {sys.argv[1]}:{hash_key(key.encode())}")  # noqa: T201


if __name__ == "__main__":
    main()
