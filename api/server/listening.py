"""The sockets that the API listens on, or a sentence why there can be none, before anything else begins."""

from __future__ import annotations

import errno
import socket

from agent_relay.shared.settings import WrongSettings


def listen(host: str, port: int) -> list[socket.socket]:
    """Take the port on every address that the host has.

    Raises:
        WrongSettings: it cannot be had; names the setting that is wrong.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as unknown:
        reason = getattr(unknown, "strerror", None) or unknown
        raise WrongSettings(
            [f"HOST {host} is neither an address of this machine nor a name of one ({reason})."]
        ) from None
    sockets: list[socket.socket] = []
    missing: list[OSError] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bound(family, kind, protocol, address))
        except OSError as error:
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                for taken in sockets:
                    taken.close()
                raise WrongSettings([_sentence(error, host, port)]) from None
            missing.append(error)  # As `::1` of `localhost` on a machine without IPv6.
    if not sockets:
        raise WrongSettings([_sentence(missing[0], host, port)])
    return sockets


def _bound(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    server = socket.socket(family, kind, protocol)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(address)
        server.listen()
    except OSError:
        server.close()
        raise
    return server


def _sentence(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"PORT {port} on HOST {host} is taken by another process: stop that one, or set another PORT."
        case errno.EACCES | errno.EPERM:
            return f"PORT {port} may not be taken by this user: set one from 1024 on, or give the process the right to."
        case errno.EADDRNOTAVAIL:
            return f"HOST {host} is no address of this machine: set 127.0.0.1, 0.0.0.0 for all, or one that it has."
        case errno.EAFNOSUPPORT:
            return f"HOST {host} is an IPv6 address, which this machine does not support: set an IPv4 address."
        case _:
            return f"HOST {host} with PORT {port} cannot be listened on: {error.strerror}."
