"""Private servers from wheels: a PostgreSQL and a Redis-compatible server for whoever brings none.

`make run` (`agent-relay run`) and the tests start them; they answer on Unix sockets only, and nothing else in
the code knows that they are not production's own. Each file is a noun: `leash` and `process` run a command, `account`
says as whom, `binaries` where it lies, `home` keeps what outlives it, `server` has the verbs that `postgres` and
`redis` share, and `supervisor` is the one command that runs everything.
"""

from agent_relay.embedded.data_dir import DataDir, DataDirLocked
from agent_relay.embedded.postgres import PostgresServer
from agent_relay.embedded.redis import RedisServer
from agent_relay.embedded.server import ServerStartError

__all__ = ["DataDir", "DataDirLocked", "PostgresServer", "RedisServer", "ServerStartError"]
