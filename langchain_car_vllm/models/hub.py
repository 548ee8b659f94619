"""What the Hub says of a repository, asked without any library of its own."""

import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from fnmatch import fnmatch
from http.client import HTTPException, HTTPMessage
from typing import IO, Any, NamedTuple

import truststore

from langchain_car_vllm.environment import SSL_CERT_FILE
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models.download import explained, no_model
from langchain_car_vllm.models.hub_account import hub_endpoint, hub_token

WEIGHTS = "*.safetensors"
_TIMEOUT = 10.0
_UNAUTHORIZED, _NOT_FOUND, _SERVER_ERROR = 401, 404, 500
_INVALID = "Invalid credentials"


class HubFile(NamedTuple):
    """A file of a Hub repository: its name and its size in bytes."""

    name: str
    size: int


def ask_hub(source: str, revision: str | None = None) -> list[HubFile]:
    """Return a repository's files as the Hub lists them, once one of them may be read.

    Respects `HF_ENDPOINT`, `HF_TOKEN`, the token file of the Hub's own client, and proxies; trusts
    the certificates that the system trusts, and those of `SSL_CERT_FILE`.

    Raises:
        ModelDownloadError: The repository cannot be read, or holds no model; says why and what to
            do.
    """
    at = urllib.parse.quote(revision or "main", safe="")
    opener = _opener()
    listed = _request(opener, "GET", f"/api/models/{source}/revision/{at}?blobs=true", source, at)
    try:
        files = [_file(entry) for entry in json.loads(listed)["siblings"]]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        verdict = {"kind": "strange", "said": listed[:60].decode(errors="replace")}
        raise explained(source, at, verdict) from error
    if not any(fnmatch(file.name, WEIGHTS) for file in files):
        raise no_model(source)
    # A gated repository lists its files to everybody; only reading one shows who may.
    _request(opener, "HEAD", f"/{source}/resolve/{at}/config.json", source, at)
    return files


def _file(entry: dict[str, Any]) -> HubFile:
    return HubFile(str(entry["rfilename"]), int(entry.get("size") or 0))


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


def _request(
    opener: urllib.request.OpenerDirector, method: str, path: str, source: str, revision: str
) -> bytes:
    endpoint = hub_endpoint()
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"HF_ENDPOINT must be an http or https address, not `{endpoint}`",
            hint="unset HF_ENDPOINT, or set it to a mirror such as `https://hub.example.com`",
        )
    request = urllib.request.Request(endpoint + path, method=method)  # noqa: S310
    if token := hub_token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with opener.open(request, timeout=_TIMEOUT) as response:
            body: bytes = response.read()
            return body
    except urllib.error.HTTPError as error:
        code = error.headers.get("X-Error-Code") or ""
        said = str(error.headers.get("X-Error-Message") or error.reason)
        error.close()
        if code == "EntryNotFound":
            raise no_model(source) from error
        verdict = {"kind": _kind(error.code, code, said), "said": said}
        raise explained(source, revision, verdict) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        kind = "certificate" if isinstance(reason, ssl.SSLCertVerificationError) else "offline"
        raise explained(source, revision, {"kind": kind, "said": str(reason)}) from error


def _opener() -> urllib.request.OpenerDirector:
    """Return what follows and trusts: some Pythons for macOS bring no certificates of their own."""
    trusted = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if file := SSL_CERT_FILE.read():
        try:
            trusted.load_verify_locations(file)
        except OSError as error:
            raise ConfigurationError(
                f"the certificates of SSL_CERT_FILE, `{file}`, cannot be read: {error}",
                hint="unset SSL_CERT_FILE, or set it to a file of certificates in PEM form",
            ) from error
    return urllib.request.build_opener(_Redirects(), urllib.request.HTTPSHandler(context=trusted))


def _kind(status: int, code: str, said: str) -> str:
    if code == "GatedRepo":
        return "gated"
    if code == "RevisionNotFound":
        return "no-revision"
    if status == _UNAUTHORIZED and _INVALID in said:
        return "refused"
    if code == "RepoNotFound" or status in {_NOT_FOUND, _UNAUTHORIZED}:
        return "no-repository"
    return "refused" if status < _SERVER_ERROR else "down"
