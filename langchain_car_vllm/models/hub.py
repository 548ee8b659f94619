"""What the Hub says of a repository, asked without any library of its own.

Whoever answers may be a captive portal or worse: bytes, time and depth of an answer are bounded.
"""

import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import IO, Any, Self

import truststore

from langchain_car_vllm.environment import SSL_CERT_FILE
from langchain_car_vllm.errors import CarVllmError, ConfigurationError, UnservableModelError
from langchain_car_vllm.models.config import is_multimodal
from langchain_car_vllm.models.download_diagnosis import refusal_error
from langchain_car_vllm.models.hub_account import checked_endpoint, hub_endpoint, sendable_token
from langchain_car_vllm.models.hub_listing import HubListing, encode_listing, encode_refusal
from langchain_car_vllm.models.model_files import parse_object
from langchain_car_vllm.models.proxies import HttpProxies, connect_with, find_proxies, find_proxy
from langchain_car_vllm.models.remote_code import may_ask_for_code
from langchain_car_vllm.models.servable import find_missing
from langchain_car_vllm.models.snapshot import listed_size, wanted_names
from langchain_car_vllm.models.weights import weight_names
from langchain_car_vllm.support.bounded_http import basic_credentials
from langchain_car_vllm.support.printable import encodable, on_one_line

_TIMEOUT = 10.0
_DEADLINE = 30.0
"""Seconds for all that is asked of one repository."""
_MOST_LISTED = 32_000_000
_MOST_SETTINGS = 8_000_000
_PIECE = 65_536
_MOST_SHOWN = 200
_UNAUTHORIZED, _NOT_FOUND, _SERVER_ERROR = 401, 404, 500
_STATUSES = {403: "refused", 407: "proxy", 408: "down", 429: "busy"}
_INVALID = "Invalid credentials"


def ask_hub_model(source: str, revision: str | None = None, *, trust: bool = False) -> HubListing:
    """Return what the Hub has under a name, once it may be read and can be served.

    Respects `HF_ENDPOINT`, `HF_TOKEN`, the token file of the Hub's own client, and proxies; trusts
    the certificates that the system trusts, and those of `SSL_CERT_FILE`. Fetches a few files of
    settings and no weights.

    Raises:
        ModelDownloadError: The repository cannot be read, or holds no model; says why and what to
            do.
        UntrustedCodeError: It brings code that nobody trusts.
    """
    try:
        return _listing(source, revision or "main", trust=trust)
    except _RefusedError as refused:
        raise refusal_error(source, revision, refused.verdict) from refused.__cause__


def find_certain_refusal(
    source: str, revision: str | None = None, *, trust: bool = False
) -> CarVllmError | None:
    """Return why the Hub itself says that a model cannot be had, None where it may be.

    Args:
        source: The Hub repository.
        revision: A branch, tag or commit; None is the default branch.
        trust: Whether the code that the model brings belongs to it.
    """
    try:
        _listing(source, revision or "main", trust=trust)
    except _RefusedError as refused:
        if refused.verdict.get("certain"):
            return refusal_error(source, revision, refused.verdict)
    return None


def _listing(source: str, at: str, *, trust: bool) -> HubListing:
    with _Hub(source, at) as hub:
        sizes = _listed_sizes(hub)
        # A gated repository lists its files to everybody; only reading one shows who may.
        settings = {"config.json": hub.settings("config.json")}
        for name in sizes if not trust else ():
            if may_ask_for_code(name) and name not in settings:
                settings[name] = hub.settings(name)
    obstacle = find_missing(sizes, settings.get, trust=trust)
    if obstacle is not None:
        raise _RefusedError({"kind": "obstacle", "obstacle": obstacle, "certain": True})
    config = settings["config.json"] or {}
    multimodal = is_multimodal(config)
    fetched = wanted_names(sizes, multimodal=multimodal, trust=trust)
    weights = weight_names(sizes, multimodal=multimodal)
    return HubListing(config, _total(sizes, fetched), _total(sizes, weights))


def _total(sizes: Mapping[str, int], names: Iterable[str]) -> int:
    return sum(sizes[name] for name in names)


def main() -> None:
    """Print what the Hub says of a model, as the child process that asks for a supervisor."""
    source, revision, trust = sys.argv[1:]
    try:
        told = encode_listing(_listing(source, revision or "main", trust=bool(trust)))
    except _RefusedError as refused:
        told = encode_refusal(refused.verdict)
    sys.stdout.write(f"{told}\n")


def _listed_sizes(hub: "_Hub") -> dict[str, int]:
    at = urllib.parse.quote(hub.revision, safe="")
    listed = hub.get(f"/api/models/{hub.source}/revision/{at}?blobs=true", _MOST_LISTED)
    try:
        found = parse_object(Path("listing"), listed)
        return dict(_name_and_size(entry) for entry in found["siblings"])
    except (UnservableModelError, AttributeError, LookupError, TypeError, ValueError) as error:
        said = on_one_line(listed[:60].decode(errors="replace"))
        raise _RefusedError({"kind": "strange", "said": said}) from error


def _name_and_size(entry: dict[str, Any]) -> tuple[str, int]:
    name = entry["rfilename"]
    if not isinstance(name, str) or encodable(name) != name:
        raise TypeError
    return name, listed_size(entry) or 0


class _Hub:
    """A conversation with the Hub about one repository, within one limit of time."""

    def __init__(self, source: str, revision: str) -> None:
        self.source, self.revision = source, revision
        self._sockets: list[socket.socket] = []
        self._opener = _opener(self._sockets)
        self._deadline = time.monotonic() + _DEADLINE
        self._timer = threading.Timer(_DEADLINE, self._hang_up)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        with suppress(RuntimeError):  # there is no thread left: each read has a limit of its own
            self._timer.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._timer.cancel()

    def _hang_up(self) -> None:
        """End what is under way: a peer that sends a byte now and then is never late by itself."""
        for connection in list(self._sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def settings(self, name: str) -> dict[str, Any] | None:
        """Return the object in a file of settings, None where there is none."""
        at = urllib.parse.quote(self.revision, safe="")
        path = f"/{self.source}/resolve/{at}/{urllib.parse.quote(name)}"
        try:
            return parse_object(Path(name), self.get(path, _MOST_SETTINGS))
        except (_EntryMissing, UnservableModelError):
            return None

    def get(self, path: str, most: int) -> bytes:
        """Return what the Hub answers.

        Raises:
            _RefusedError: It refuses, or what answers is not the Hub.
        """
        request = _request(checked_endpoint(), path)
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as response:
                return self._read(response, most)
        except urllib.error.HTTPError as error:
            verdict = _refusal(error)
            error.close()
            if verdict["kind"] == "no-entry":
                raise _EntryMissing from error
            raise _RefusedError(verdict) from error
        except (OSError, HTTPException, ValueError) as error:
            raise _RefusedError(self._failure(error)) from error

    def _read(self, response: HTTPResponse, most: int) -> bytes:
        body = bytearray()
        while piece := response.read1(_PIECE):
            body += piece
            if len(body) > most:
                said = f"more than {most // 1_000_000} MB"
                raise _RefusedError({"kind": "strange", "said": said})
        if time.monotonic() >= self._deadline:
            raise TimeoutError
        return bytes(body)

    def _failure(self, error: Exception) -> dict[str, Any]:
        reason = getattr(error, "reason", error)
        if time.monotonic() >= self._deadline:
            return {"kind": "slow", "said": f"{_DEADLINE:g}"}
        if isinstance(reason, ssl.SSLCertVerificationError):
            kind = "certificate"
        else:
            kind = "proxy" if find_proxy(hub_endpoint()) else "offline"
        return {"kind": kind, "said": on_one_line(reason)}


def _request(endpoint: str, path: str) -> urllib.request.Request:
    """Return a request with what opens the Hub: a mirror may want the user that its address names.

    As for the Hub's own client that user goes before a token.
    """
    parts = urllib.parse.urlsplit(endpoint)
    user, _, place = parts.netloc.rpartition("@")
    address = parts._replace(netloc=place).geturl()
    request = urllib.request.Request(address + path)  # noqa: S310
    if user:
        request.add_unredirected_header("Authorization", f"Basic {basic_credentials(endpoint)}")
    elif token := sendable_token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request


class _RefusedError(Exception):
    """The Hub does not give a model, or nobody answers for it; never leaves this module.

    Attributes:
        verdict: As `refusal_error` takes it.
    """

    def __init__(self, verdict: dict[str, Any]) -> None:
        super().__init__(verdict)
        self.verdict = verdict


class _EntryMissing(Exception):  # noqa: N818 - never leaves this module
    """The repository holds no such file."""


def _refusal(error: urllib.error.HTTPError) -> dict[str, Any]:
    code = error.headers.get("X-Error-Code") or ""
    said = on_one_line(error.headers.get("X-Error-Message") or error.reason)[:_MOST_SHOWN]
    said = said or f"status {error.code}"
    is_certain = code in _CERTAIN or (error.code == _UNAUTHORIZED and _INVALID in said)
    return {"kind": _kind(error.code, code, said), "said": said, "certain": is_certain}


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows as the Hub's own client does: the token goes along to the same host, no further."""

    def redirect_request(  # noqa: PLR0917 - urllib's
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is not None:
            found.method = req.get_method()
            token = req.unredirected_hdrs.get("Authorization")
            if token and _origin(newurl) == _origin(req.full_url):
                found.add_unredirected_header("Authorization", token)
        return found


def _origin(address: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(address)
    return parts.scheme, parts.netloc


def _opener(sockets: list[socket.socket]) -> urllib.request.OpenerDirector:
    """Return what follows and trusts: some Pythons for macOS bring no certificates of their own.

    Args:
        sockets: Gets each connection that is made.
    """
    trusted = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if file := SSL_CERT_FILE.read():
        try:
            trusted.load_verify_locations(file)
        except OSError as error:
            raise ConfigurationError(
                f"the certificates of SSL_CERT_FILE, `{file}`, cannot be read: {error}",
                hint="unset SSL_CERT_FILE, or set it to a file of certificates in PEM form",
            ) from error

    proxies = find_proxies()

    class Plain(HTTPConnection):
        def connect(self) -> None:
            self._create_connection = connect_with(proxies.get("http"))
            super().connect()
            sockets.append(self.sock)

    class Encrypted(HTTPSConnection):
        def connect(self) -> None:
            self._create_connection = connect_with(proxies.get("https"))
            super().connect()
            sockets.append(self.sock)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> HTTPResponse:
            return self.do_open(Plain, req)

    class EncryptedHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> HTTPResponse:
            return self.do_open(Encrypted, req, context=trusted)

    handlers = (HttpProxies(proxies), _Redirects(), PlainHandler(), EncryptedHandler())
    return urllib.request.build_opener(*handlers)


# Nobody but the Hub says them.
_CERTAIN = {"RepoNotFound", "GatedRepo", "RevisionNotFound"}
_CODES = {"EntryNotFound": "no-entry", "GatedRepo": "gated", "RevisionNotFound": "no-revision"}


def _kind(status: int, code: str, said: str) -> str:
    if code in _CODES:
        return _CODES[code]
    if status == _UNAUTHORIZED and _INVALID in said:
        return "refused"
    if code == "RepoNotFound" or status in {_NOT_FOUND, _UNAUTHORIZED}:
        return "no-repository"
    return _STATUSES.get(status) or ("withheld" if status < _SERVER_ERROR else "down")
