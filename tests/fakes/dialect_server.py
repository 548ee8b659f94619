"""A dialect behind a socket on loopback. Stdlib only."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from fakes.dialect import Dialect
from fakes.response_format import BrokenError


class _Http(ThreadingHTTPServer):
    request_queue_size = 512


class Server:
    """A dialect behind a socket on loopback, in a thread of this process.

    Args:
        dialect: What is said.
        shown: The certificate that it shows, None to speak without TLS.

    Attributes:
        base_url: The root of the OpenAI API.
    """

    def __init__(self, dialect: Dialect, shown: ssl.SSLContext | None = None) -> None:
        self.dialect = dialect
        self._http = _Http(("127.0.0.1", 0), handler_for(dialect))
        self._http.daemon_threads = True
        if shown is not None:
            self._http.socket = shown.wrap_socket(self._http.socket, server_side=True)
        scheme = "http" if shown is None else "https"
        self.base_url = f"{scheme}://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)


def handler_for(dialect: Dialect) -> type[BaseHTTPRequestHandler]:
    """Return a request handler that speaks `dialect`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            if self.command == "POST":
                dialect.peers.append(self.client_address)
            response = dialect.respond(self.command, self.path, dict(self.headers), body)
            self.send_response(response.status)
            self.send_header("content-type", response.content_type)
            for name, value in response.headers.items():
                self.send_header(name, value)
            # As uvicorn does after a failure: without a word in the headers.
            self.close_connection = self.close_connection or response.status >= 500
            if isinstance(response.body, bytes):
                self.send_header("content-length", str(len(response.body)))
                self.end_headers()
                self.wfile.write(response.body)
                return
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self._send_parts(response.body)

        do_GET = do_POST = do_DELETE = _handle

        def _send_parts(self, parts: Iterator[bytes]) -> None:
            try:
                for part in parts:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                self.wfile.write(b"0\r\n\r\n")
            except (BrokenError, ConnectionError):
                self.close_connection = True
                close = getattr(parts, "close", None)
                if close is not None:
                    close()

        def log_message(self, *_: object) -> None:
            """Say nothing: tests read the dialect's records."""

    return Handler
