"""What the Hub says of a repository, asked without any library of its own.

Whoever answers may be a captive portal or worse: bytes, time and depth of an answer are bounded.
"""

import ssl
import string
import sys
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import truststore

from langchain_car_vllm import __version__
from langchain_car_vllm.environment import SSL_CERT_FILE
from langchain_car_vllm.errors import CarVllmError, ConfigurationError, UnservableModelError
from langchain_car_vllm.models.config import is_multimodal
from langchain_car_vllm.models.download_diagnosis import refusal_error
from langchain_car_vllm.models.hub_account import checked_endpoint, hub_endpoint, sendable_token
from langchain_car_vllm.models.hub_listing import HubListing, encode_listing, encode_refusal
from langchain_car_vllm.models.model_files import parse_object
from langchain_car_vllm.models.proxies import fetch_through_proxies, find_proxy
from langchain_car_vllm.models.remote_code import may_ask_for_code
from langchain_car_vllm.models.servable import find_missing
from langchain_car_vllm.models.snapshot import listed_size, wanted_names
from langchain_car_vllm.models.weights import weight_names
from langchain_car_vllm.support.bounded_http import HttpError, HttpResponse, basic_credentials
from langchain_car_vllm.support.printable import encodable, on_one_line

_DEADLINE = 30.0
"""Seconds for all that is asked of one repository."""
_MOST_LISTED = 32_000_000
_MOST_SETTINGS = 8_000_000
_MOST_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
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
    hub = _Hub(source, at)
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
    at = quote(hub.revision, safe="")
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
        self._trust = _trusted()
        self._deadline = time.monotonic() + _DEADLINE

    def settings(self, name: str) -> dict[str, Any] | None:
        """Return the object in a file of settings, None where there is none."""
        at = quote(self.revision, safe="")
        path = f"/{self.source}/resolve/{at}/{quote(name)}"
        try:
            return parse_object(Path(name), self.get(path, _MOST_SETTINGS))
        except (_EntryMissing, UnservableModelError):
            return None

    def get(self, path: str, most: int) -> bytes:
        """Return what the Hub answers.

        Raises:
            _RefusedError: It refuses, or what answers is not the Hub.
        """
        place, headers = _address_and_headers(path)
        try:
            answer = self._follow(place, headers, most)
        except (HttpError, ValueError) as error:
            raise _RefusedError(self._failure(error)) from error
        if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
            verdict = _refusal(answer)
            raise _EntryMissing if verdict["kind"] == "no-entry" else _RefusedError(verdict)
        if len(answer.body) > most:
            said = f"more than {most // 1_000_000} MB"
            raise _RefusedError({"kind": "strange", "said": said})
        return answer.body

    def _follow(self, place: str, headers: dict[str, str], most: int) -> HttpResponse:
        """Return what redirects lead to; as with the Hub's own client a token stays at its host."""
        for _ in range(_MOST_REDIRECTS + 1):
            answer = fetch_through_proxies(
                place,
                seconds=self._deadline - time.monotonic(),
                most_bytes=most + 1,
                headers=headers,
                trust=lambda: self._trust,
            )
            target = answer.headers.get("location")
            if answer.status not in _REDIRECTS or not target:
                break
            before = place
            place = urljoin(place, quote(target, safe=string.punctuation, encoding="latin-1"))
            if urlsplit(place)[:2] != urlsplit(before)[:2]:
                headers.pop("authorization", None)
        return answer

    def _failure(self, error: Exception) -> dict[str, Any]:
        if time.monotonic() >= self._deadline:
            return {"kind": "slow", "said": f"{_DEADLINE:g}"}
        reason = error.__cause__ or error
        kind = "proxy" if find_proxy(hub_endpoint()) else "offline"
        if isinstance(reason, ssl.SSLCertVerificationError):
            kind = "certificate"
        return {"kind": kind, "said": on_one_line(reason)}


def _address_and_headers(path: str) -> tuple[str, dict[str, str]]:
    """Return where to ask the Hub, and with what: a mirror may want the user of its address.

    As for the Hub's own client that user goes before a token.
    """
    endpoint = checked_endpoint()
    parts = urlsplit(endpoint)
    user, _, place = parts.netloc.rpartition("@")
    headers = {"user-agent": f"langchain-car-vllm/{__version__}"}
    if user:
        headers["authorization"] = f"Basic {basic_credentials(endpoint)}"
    elif token := sendable_token():
        headers["authorization"] = f"Bearer {token}"
    return parts._replace(netloc=place).geturl() + path, headers


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


def _refusal(answer: HttpResponse) -> dict[str, Any]:
    status, code = answer.status, answer.headers.get("X-Error-Code") or ""
    said = on_one_line(answer.headers.get("X-Error-Message") or answer.reason)[:_MOST_SHOWN]
    said = said or f"status {status}"
    is_certain = code in _CERTAIN or (status == _UNAUTHORIZED and _INVALID in said)
    return {"kind": _kind(status, code, said), "said": said, "certain": is_certain}


def _trusted() -> ssl.SSLContext:
    """Return what the system trusts: some Pythons for macOS bring no certificates of their own."""
    trusted = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if file := SSL_CERT_FILE.read():
        try:
            trusted.load_verify_locations(file)
        except OSError as error:
            raise ConfigurationError(
                f"the certificates of SSL_CERT_FILE, `{file}`, cannot be read: {error}",
                hint="unset SSL_CERT_FILE, or set it to a file of certificates in PEM form",
            ) from error
    return trusted


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
