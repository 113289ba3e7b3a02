"""A receiver of webhooks, as a caller would run one: it writes down what it is sent, and behaves as its paths say."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from standardwebhooks import Webhook


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The event's id."""
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> dict[str, Any]:
        """Check the signature, as the library does it, and return the event."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """A server and what it has received."""

    url: str
    port: int
    received: list[Received] = field(default_factory=list[Received])
    statuses: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """What a path answers with, one after the other, and then 204."""
    hanging: threading.Event = field(default_factory=threading.Event)
    """While it is not set, `/hangs` gives no answer."""

    def at(self, path: str) -> list[Received]:
        """Look at what a path was sent."""
        return [received for received in list(self.received) if received.path == path]


@contextmanager
def receiving(*, tls: ssl.SSLContext | None = None) -> Generator[Receiver]:
    """Run a receiver on this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers["content-length"]))
            receiver.received.append(Received(self.path, headers, body))
            self.close_connection = True
            if path == "/hangs":
                receiver.hanging.wait(60)
            planned = receiver.statuses.get(path)
            with suppress(OSError):
                self._answer(path, planned.pop(0) if planned else 204)

        def _answer(self, path: str, status: int) -> None:
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{receiver.url}/redirected")
            if path == "/endless":
                self.end_headers()
                for _ in range(600):
                    self.wfile.write(b"x" * 65536)
                    time.sleep(0.05)
                return
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the library's name)
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    port = int(server.server_address[1])
    receiver = Receiver(f"{'https' if tls else 'http'}://127.0.0.1:{port}", port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.hanging.set()
        server.shutdown()
        thread.join()
        server.server_close()
