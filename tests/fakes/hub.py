"""A model hub on loopback that speaks the part of the Hub's API that `huggingface_hub` uses.

Serves directories as repositories, named by `HF_ENDPOINT`. Every fault is an attribute that may be
changed while it runs, so that a download can be interrupted and resumed.
"""

import hashlib
import json
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fakes.weights import weights_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CHUNK = 16384


class FakeHub:
    """What is served, and what goes wrong.

    Attributes:
        repositories: Directories by repository name.
        token: The token that must be sent, None for a public hub.
        gated: Whether a request with a token is still refused, as for a licence not accepted.
        bytes_per_second: Speed of file downloads, None for full speed.
        cut_after: Bytes after which a file's connection is cut, None for never.
        wrong_size: Bytes that the listing and headers promise beyond what a file has.
        failing_with: A status that answers everything, None for none.
        redirecting: Whether files are answered from another path of the same host.
        elsewhere: An address that files are answered from instead, None for this hub.
        portal: A page that answers everything in the Hub's place, None for none.
        authorizations: Ways in which somebody said who he is, such as `Bearer`.
        requests: `(method, path, status)` of all requests so far.
        bytes_sent: Bytes of weights sent so far.
    """

    def __init__(self):
        self.repositories = {}
        self.revisions = {"main": COMMIT}
        self.token = None
        self.gated = False
        self.bytes_per_second = None
        self.cut_after = None
        self.wrong_size = 0
        self.failing_with = None
        self.redirecting = False
        self.elsewhere = None
        self.portal = None
        self.authorizations = set()
        self.requests = []
        self.bytes_sent = 0
        self.endpoint = ""

    def files(self, repository):
        root = self.repositories[repository]
        return {
            str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()
        }


@contextmanager
def running_hub(shown=None, host="127.0.0.1"):
    """Run a hub in threads of this process, on a port of its own.

    Args:
        shown: What the hub shows its certificate with, None for a hub without TLS.
        host: The address that it listens at.
    """
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    family = {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET}
    server = type("Server", (ThreadingHTTPServer,), family)((host, 0), handler)
    server.daemon_threads = True
    scheme = "http"
    if shown:
        scheme = "https"
        server.socket = shown.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    hub.endpoint = f"{scheme}://{f'[{host}]' if ':' in host else host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.bytes_per_second = None
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def log_message(self, *_arguments):
        pass

    def answer(self, *, with_body):
        path = unquote(urlsplit(self.path).path)
        if self.hub.portal:
            self.send_json(self.hub.portal)
        elif self.hub.failing_with:
            self.refuse(self.hub.failing_with, "", "the hub is down")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+?))?/?", path):
            self.answer_api(*match.groups())
        elif (self.hub.redirecting or self.hub.elsewhere) and "/resolve/" in path:
            kept = path if self.hub.elsewhere else path.replace("/resolve/", "/resolve-cache/")
            self.send_response(307)
            self.send_header("Location", (self.hub.elsewhere or "") + kept)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve(?:-cache)?/([^/]+)/(.+)", path):
            self.answer_file(*match.groups(), with_body=with_body)
        else:
            self.refuse(404, "", "nothing here")

    def is_refused(self, repository, revision):
        hub = self.hub
        authorization = self.headers.get("Authorization") or ""
        hub.authorizations.add(authorization.partition(" ")[0])
        sent = authorization.removeprefix("Bearer ").removeprefix("Basic ")
        if hub.token and sent != hub.token:
            # The real one says the same of a private repository and of none.
            if hub.gated or not sent:
                code = "GatedRepo" if hub.gated else "RepoNotFound"
                self.refuse(401, code, "Invalid username or password.")
            else:
                self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repository not in hub.repositories:
            self.refuse(404 if sent else 401, "RepoNotFound", "Repository not found")
        elif hub.gated:
            self.refuse(403, "GatedRepo", "Access to this model is restricted")
        elif revision not in hub.revisions and revision not in hub.revisions.values():
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return False
        return True

    def answer_api(self, repository, kind, revision):
        if self.is_refused(repository, revision or "main"):
            return
        commit = self.hub.revisions.get(revision or "main", revision)
        files = self.hub.files(repository)
        if kind == "tree":
            self.send_json([self.listed(name, path) for name, path in files.items()])
        else:
            siblings = [self.sibling(name, path) for name, path in files.items()]
            self.send_json({"id": repository, "sha": commit, "siblings": siblings})

    def sibling(self, name, path):
        listed = self.listed(name, path)
        found = {"rfilename": name, "size": listed["size"], "blobId": listed["oid"]}
        if "lfs" in listed:
            found["lfs"] = {
                "sha256": listed["lfs"]["oid"],
                "size": listed["size"],
                "pointerSize": 100,
            }
        return found

    def listed(self, name, path):
        size = self.promised_size(path)
        entry = {"type": "file", "path": name, "size": size, "oid": etag_of(path)[:40]}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": etag_of(path), "size": size, "pointerSize": 100}
        return entry

    def promised_size(self, path):
        extra = self.hub.wrong_size if path.suffix == ".safetensors" else 0
        return path.stat().st_size + extra

    def answer_file(self, repository, revision, name, *, with_body):
        if self.is_refused(repository, revision):
            return
        path = self.hub.files(repository).get(name)
        if path is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        size = self.promised_size(path)
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        status = 206 if self.headers.get("Range") else 200
        self.send_response(status)
        commit = self.hub.revisions.get(revision, revision)
        self.send_header("X-Repo-Commit", commit)
        etag = etag_of(path) if name.endswith(".safetensors") else etag_of(path)[:40]
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size - begin))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.note(status)  # before the client can know of it
        self.end_headers()
        if with_body:
            with suppress(ConnectionError):
                self.send_file(path, begin)

    def send_file(self, path, begin):
        sent = 0
        with path.open("rb") as file:
            file.seek(begin)
            while chunk := file.read(_CHUNK):
                if self.hub.cut_after is not None and sent >= self.hub.cut_after:
                    break
                self.wfile.write(chunk)
                sent += len(chunk)
                if path.suffix == ".safetensors":
                    self.hub.bytes_sent += len(chunk)
                if self.hub.bytes_per_second:
                    time.sleep(len(chunk) / self.hub.bytes_per_second)
        if begin + sent < self.promised_size(path):
            self.close_connection = True

    def refuse(self, status, code, message):
        self.send_json({"error": message}, status=status, code=code, message=message)

    def send_json(self, content, *, status=200, code="", message=""):
        body = json.dumps(content).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.note(status)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def note(self, status):
        self.hub.requests.append((self.command, self.path, status))


def etag_of(path, _known={}):  # noqa: B006
    key = (path, path.stat().st_size, path.stat().st_mtime_ns)
    if key not in _known:
        _known[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return _known[key]


def write_model(folder: Path, *, weights: int = 300_000):
    """Write the files of a model that nothing could run, with weights of some size."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("about")
    (folder / "model.safetensors").write_bytes(weights_of(weights))
    return folder
