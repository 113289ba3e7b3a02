"""The account that the private servers run as, and what it can reach.

PostgreSQL refuses to be root, so root's servers are `nobody`'s. No account is made, and no folder that is not ours
changes its owner or its mode.
"""

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Account:
    """An account by its numbers."""

    uid: int
    gid: int


class NamelessUser(SystemExit):
    """PostgreSQL cannot make its files for a user who has no name."""

    def __init__(self, user: str) -> None:
        super().__init__(
            f"{user} is not in /etc/passwd, and PostgreSQL makes no database for a user without a name. Add it there,"
            " run as another user, or set DATABASE_URL and REDIS_URL to servers of your own."
        )


def servers_account() -> Account | None:
    """Return whom the servers run as if not as ourselves, which is when we are root.

    Raises:
        NamelessUser: there is no `nobody`.
    """
    if os.geteuid() != 0:
        return None
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise NamelessUser("The user nobody, as whom root runs private servers,") from None
    return Account(nobody.pw_uid, nobody.pw_gid)


def check_name() -> None:
    """See that the user whom the servers run as has a name.

    Raises:
        NamelessUser: it has none.
    """
    if servers_account() is not None:
        return
    uid = os.geteuid()
    try:
        pwd.getpwuid(uid)
    except KeyError:
        raise NamelessUser(f"The user {uid}") from None


def everybody_reaches(path: Path) -> bool:
    """Tell whether every account can enter each folder on the way to the path, and read the path itself."""
    path = path.resolve()
    return bool(path.stat().st_mode & stat.S_IROTH) and all(
        folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents) if folder.is_dir()
    )


def make_open_folder(path: Path) -> None:
    """Make a folder that every account may enter, whatever the umask; leave one that is there as it is."""
    if not path.is_dir():
        path.mkdir()
        path.chmod(0o755)


def make_private_folder(path: Path) -> None:
    """Make a folder that only the servers' account (and root) can enter."""
    path.mkdir(mode=0o700)
    hand_over(path)


def hand_over(path: Path) -> None:
    """Give a folder that we made to the servers' account."""
    if account := servers_account():
        os.chown(path, account.uid, account.gid)
