"""Records how an OpenAI-compatible server answers, for `tests/golden/dialects/`.

    python scripts/record_dialect.py NAME DESCRIPTION BASE_URL MODEL [API_KEY]

Asks in the ways of `tests/dialects.py` through a proxy that notes each answer byte by byte. The
file holds no addresses, paths or keys: BASE_URL and MODEL are replaced by names.
"""

import http.client
import json
import re
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from dialects import SCENARIOS  # noqa: E402

from langchain_car_vllm import ChatVllmMlx  # noqa: E402
from langchain_car_vllm.errors import CarVllmError  # noqa: E402
from langchain_car_vllm.wire.transport import remote  # noqa: E402

_PATIENCE = 300.0
_SERVED = "served-model"
# It names the kernel of the machine.
_FINGERPRINT = re.compile(r'(system_fingerprint\\": ?\\")[^"\\]*(\\")')


class Recorder(ThreadingHTTPServer):
    """Passes requests on, and notes the answers.

    Args:
        target: Root of the OpenAI API.
        key: Of the API.
    """

    daemon_threads = True

    def __init__(self, target: str, key: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target)
        self.key = key
        self.answers: list[dict[str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Recorder

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        target = self.server.target
        upstream = http.client.HTTPConnection(target.hostname or "", target.port, timeout=_PATIENCE)
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.server.key}"}
        try:
            upstream.request(self.command, self.path, body or None, headers)
            response = upstream.getresponse()
            said = response.read()
        except (OSError, http.client.HTTPException):
            # A server that breaks off is recorded as one.
            self.server.answers.append({"path": self.path, "status": 0, "type": "", "body": ""})
            self.close_connection = True
            return
        kind = response.getheader("content-type", "")
        self.server.answers.append(
            {
                "path": self.path,
                "status": response.status,
                "type": kind,
                "body": said.decode(),
            }
        )
        with suppress(OSError):
            self.send_response(response.status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def main() -> None:
    """Record one server."""
    name, description, base_url, model, *rest = sys.argv[1:]
    recorder = Recorder(base_url, rest[0] if rest else "none")
    threading.Thread(target=recorder.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{recorder.server_address[1]}/v1"
    scenarios = {}
    for scenario, ask in SCENARIOS.items():
        remote.forget()
        recorder.answers = []
        wanted = "no-such-model" if scenario == "unknown model" else model
        llm = ChatVllmMlx(
            model=wanted,
            base_url=url,
            temperature=0,
            max_tokens=40 if scenario == "structured" else 12,
            max_retries=0,
            timeout=_PATIENCE,
        )
        try:
            ask(llm)
        except CarVllmError as error:
            print(f"{scenario}: {type(error).__name__}: {error}")
        scenarios[scenario] = recorder.answers
    text = json.dumps(
        {"server": description, "origin": "recorded", "scenarios": scenarios}, indent=1
    )
    for private, public in ((json.dumps(model)[1:-1], _SERVED), (base_url, "http://server/v1")):
        text = text.replace(private, public)
    text = _FINGERPRINT.sub(r"\1fingerprint\2", text)
    file = ROOT / "tests" / "golden" / "dialects" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
