"""A server of a few lines that behaves as `vllm-mlx serve` does to its supervisor.

`car-vllm doctor --selftest` runs a copy of this file, so it uses the standard library alone. Every
answer of `/v1/chat/completions` lasts until the process is ended.
"""

import argparse
import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers what readiness asks for, and one request that never ends."""

    served = ""
    key = ""

    def do_GET(self) -> None:
        """Answer `/health` to everybody, `/v1/models` to whoever has the key."""
        if self.path == "/health":
            self._answer(200, {"status": "healthy", "model_name": self.served})
        elif self.headers.get("authorization") == f"Bearer {self.key}":
            self._answer(200, {"data": [{"id": self.served}]})
        else:
            self._answer(401, {"detail": "Invalid API key"})

    def do_POST(self) -> None:
        """Send the beginning of an answer, and nothing more."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"data: {}\n\n")
        self.wfile.flush()
        threading.Event().wait()

    def _answer(self, status: int, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser()
    for name in ("--host", "--served-model-name", "--api-key"):
        parser.add_argument(name)
    parser.add_argument("--port", type=int)
    arguments, _ = parser.parse_known_args()
    Handler.served, Handler.key = arguments.served_model_name, arguments.api_key
    ThreadingHTTPServer.daemon_threads = True
    with suppress(KeyboardInterrupt):
        ThreadingHTTPServer((arguments.host, arguments.port), Handler).serve_forever(0.05)


if __name__ == "__main__":
    main()
