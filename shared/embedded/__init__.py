"""Private servers from wheels: a PostgreSQL and a Redis-compatible server for whoever brings none.

`make run` (`python -m shared.embedded`) and the tests start them; they answer on Unix sockets only, and nothing else in
the code knows that they are not production's own. Each file is a noun: `leash` and `process` run a command, `account`
says as whom, `binaries` where it lies, `home` keeps what outlives it, `server` has the verbs that `postgres` and
`redis` share, and `supervisor` is the one command that runs everything.
"""

from shared.embedded.home import Home, HomeLocked
from shared.embedded.postgres import PostgresServer
from shared.embedded.redis import RedisServer
from shared.embedded.server import ServerStartError

__all__ = ["Home", "HomeLocked", "PostgresServer", "RedisServer", "ServerStartError"]
