"""What can be known of a model's chances before anything is installed, fetched or launched."""

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from fnmatch import fnmatch
from http.client import HTTPException
from typing import Any, NamedTuple

from langchain_car_vllm.errors import (
    ConfigurationError,
    InsufficientMemoryError,
    UnknownModelError,
)
from langchain_car_vllm.models.download import check_may_download, explained, measure_download
from langchain_car_vllm.models.hub_account import hub_endpoint, hub_token
from langchain_car_vllm.models.ids import ModelId
from langchain_car_vllm.models.snapshot import find_snapshot, hub_cache

_TIMEOUT = 10.0
_WEIGHTS = "*.safetensors"
_GB = 1e9
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _SERVER_ERROR = 401, 403, 404, 500


class HubFile(NamedTuple):
    """A file of a Hub repository: its name and its size in bytes."""

    name: str
    size: int


def check_model(
    model: ModelId,
    revision: str | None = None,
    *,
    auto_pull: bool = True,
    budget_bytes: int | None = None,
) -> None:
    """Check that a model can be had and will fit; fetches no file and starts nothing.

    A copy on this machine is looked at; else the Hub is asked, which takes one or two requests of
    at most ten seconds each.

    Args:
        model: What is to be served.
        revision: A branch, tag or commit; None is the default branch.
        auto_pull: Whether it may be downloaded.
        budget_bytes: Memory that all models together may take, None for no limit.

    Raises:
        UnknownModelError: The directory holds no weights in the format that MLX reads.
        ModelDownloadError: It is not here and cannot be fetched; says why and what to do.
        InsufficientMemoryError: Its weights alone exceed the budget.
    """
    snapshot = find_snapshot(model.source, revision)
    if snapshot is not None:
        files = [HubFile(path.name, path.stat().st_size) for path in snapshot.glob(_WEIGHTS)]
        if not files:
            raise UnknownModelError(model.name, f"`{snapshot}` holds no `{_WEIGHTS}` weights")
    elif model.is_local:
        raise UnknownModelError(model.name, f"`{model.source}` holds no `config.json`")
    else:
        check_may_download(model.source, auto_pull=auto_pull)
        files = ask_hub(model.source, revision)
        _check_disk(model.source, revision, files)
    if budget_bytes is not None:
        _check_memory(model, files, budget_bytes)


def ask_hub(source: str, revision: str | None = None) -> list[HubFile]:
    """Return a repository's files as the Hub lists them, once one of them may be read.

    Respects `HF_ENDPOINT`, `HF_TOKEN`, the token file of the Hub's own client, and proxies.

    Raises:
        ModelDownloadError: The repository cannot be read; says why and what to do.
    """
    at = urllib.parse.quote(revision or "main", safe="")
    found = json.loads(
        _request("GET", f"/api/models/{source}/revision/{at}?blobs=true", source, at)
    )
    # A gated repository lists its files to everybody; only reading one shows who may.
    _request("HEAD", f"/{source}/resolve/{at}/config.json", source, at)
    return [_file(entry) for entry in found.get("siblings") or []]


def _file(entry: dict[str, Any]) -> HubFile:
    return HubFile(str(entry.get("rfilename")), int(entry.get("size") or 0))


def _request(method: str, path: str, source: str, revision: str) -> bytes:
    endpoint = hub_endpoint()
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"HF_ENDPOINT must be an http or https address, not `{endpoint}`",
            hint="unset HF_ENDPOINT, or set it to a mirror such as `https://hub.example.com`",
        )
    request = urllib.request.Request(endpoint + path, method=method)  # noqa: S310
    if token := hub_token():
        # Not sent on to the host that a file's address leads to.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:  # noqa: S310
            body: bytes = response.read()
            return body
    except urllib.error.HTTPError as error:
        kind = _kind(error.code, error.headers.get("X-Error-Code") or "")
        said = error.headers.get("X-Error-Message") or error.reason
        error.close()
        raise explained(source, revision, {"kind": kind, "said": said}) from error
    except (OSError, HTTPException) as error:
        raise explained(source, revision, {"kind": "offline", "said": str(error)}) from error


def _kind(status: int, code: str) -> str:
    if code == "GatedRepo":
        return "gated"
    if code == "RevisionNotFound":
        return "no-revision"
    if code == "RepoNotFound" or status in {_NOT_FOUND, _UNAUTHORIZED}:
        return "no-repository"
    return "refused" if status < _SERVER_ERROR else "down"


def _check_disk(source: str, revision: str | None, files: list[HubFile]) -> None:
    cache = hub_cache()
    if cache is None:
        return
    folder = next(path for path in (cache, *cache.parents) if path.exists())
    done, _ = measure_download(source, revision)
    needed = max(0, sum(file.size for file in files if _is_fetched(file.name)) - done)
    free = shutil.disk_usage(folder).free
    if needed > free:
        verdict = {"kind": "disk", "needed": needed, "free": free, "folder": str(cache)}
        raise explained(source, revision, verdict)


def _is_fetched(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in (_WEIGHTS, "*.json", "*.jinja"))


def _check_memory(model: ModelId, files: list[HubFile], budget: int) -> None:
    weights = sum(file.size for file in files if fnmatch(file.name, _WEIGHTS))
    if weights > budget:
        raise InsufficientMemoryError(
            f"the weights of `{model.name}` take {weights / _GB:.1f} GB and all models together "
            f"may take {budget / _GB:.1f} GB",
            hint="choose a smaller model or quantisation, or raise CAR_VLLM_MLX_MEMORY_GB",
        )
