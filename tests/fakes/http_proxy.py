"""An HTTP proxy on loopback, which leads every name to one port of this machine."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from fakes.streams import copy


class HttpProxy(ThreadingHTTPServer):
    """Where it listens, and what was asked of it.

    Attributes:
        address: `host:port`.
        asked: The method and target of each request so far.
        authorizations: What opened the proxy so far.
        target: The port that all requests are led to.
        password: What must be sent, None for a proxy that is open.
    """

    daemon_threads = True

    def __init__(self, target: int, password: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self.server_port}"
        self.asked: set[tuple[str, str]] = set()
        self.target = target
        self.password = password


@contextmanager
def running_http_proxy(target: int, password: str | None = None) -> Iterator[HttpProxy]:
    """Run a proxy in threads of this process."""
    with HttpProxy(target, password) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HttpProxy

    def log_message(self, *_: object) -> None:
        pass

    def is_refused(self) -> bool:
        self.server.asked.add((self.command, self.path))
        wanted = self.server.password
        if wanted is None or self.headers.get("Proxy-Authorization") == f"Basic {wanted}":
            return False
        self.send_error(407)
        return True

    def do_GET(self) -> None:
        if self.is_refused():
            return
        place = urlsplit(self.path)
        behind = HTTPConnection("127.0.0.1", self.server.target)
        assert self.headers["Host"] == place.netloc
        behind.request("GET", f"{place.path}?{place.query}", headers=dict(self.headers))
        answer = behind.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.read())
        behind.close()

    def do_CONNECT(self) -> None:
        if self.is_refused():
            return
        with socket.create_connection(("127.0.0.1", self.server.target)) as server:
            for piece in (b"HTTP/1.1 200 Connection established\r\n", b"Via: a\r\n", b"\r\n"):
                self.connection.sendall(piece)
            back = threading.Thread(target=copy, args=(server, self.connection), daemon=True)
            back.start()
            copy(self.connection, server)
            back.join()
