"""Runs `vllm-mlx download` so that it goes on where it was, and ends at once where it cannot work.

A copy of this file runs under the Python of the runtime, so it uses the standard library of Python
3.10 and nothing else of ours:

    downloader.py BINARY download MODEL [--mllm]

What it changes, and why:

* huggingface_hub (at least 1.31 to 2.4) throws a partial file away and starts it anew. All of a
  model's files are fetched at once, so that an interruption near the end loses nearly everything.
  Here a partial file stays and is continued by a Range request. What was continued is compared with
  its hash, and fetched anew where a part of it was somebody else's.
* `vllm-mlx download` knows no revision (0.6.0). `CAR_VLLM_DOWNLOAD_REVISION` gives it one.
* It guesses by name whether a model is multimodal, and leaves weights out where it is not. Here the
  `config.json` that has arrived has the last word.
* It fetches code that the model brings. Here that stays where it is unless the user trusts it
  (`CAR_VLLM_DOWNLOAD_TRUST`), and a model that would have the server run some ends the process
  before any weights are fetched. So does a repository without weights that the server reads.
* huggingface_hub has a branch lead to the new commit before its files are there. An update
  (`CAR_VLLM_DOWNLOAD_UPDATE`) that does not get to its end leaves the former copy in use.
* It tries three times whatever the reason. What no repetition cures ends it at once, with a line
  that starts with `VERDICT` and says why in JSON.
"""

import errno
import functools
import hashlib
import inspect
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

VERDICT = "car-vllm download verdict: "
COMMIT = "car-vllm download commit: "
_CHUNK = 1024 * 1024
RESERVE = 200_000_000
_NO_SPACE = (28, 69, 122)
"""ENOSPC, and EDQUOT of macOS and of Linux."""
_UNUSABLE = (
    *(errno.EPERM, errno.EACCES, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
)
_KINDS = (
    ("GatedRepoError", "gated"),
    ("RepositoryNotFoundError", "no-repository"),
    ("RevisionNotFoundError", "no-revision"),
)
_NEEDED = {"incomplete_path", "destination_path", "url_to_download", "headers", "expected_size"}
_MEDIA_KEYS = {"vision_config", "audio_config", "vision_tower", "image_token_id", "audio_token_id"}
_MEDIA_PATTERNS = ("*.safetensors", "*.model")
# The server loads no weights from other folders, and not this second copy of them.
_UNREAD = ("*/*.safetensors", "*consolidated.safetensors")
_CODE = "*.py"
_DATA = {"tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json"}
_MOST_SETTINGS = 64_000_000
_MOST_NAMES = 200
_SERVER_ERROR, _TOO_MANY = 500, 429
# Who sets it asked for the Hub's own fast transfer, which starts files anew.
_FAST = "HF_XET_HIGH_PERFORMANCE"
_UPDATE = "CAR_VLLM_DOWNLOAD_UPDATE"
_TRUE = ("1", "true", "yes", "on")


def _is_on(name: str) -> bool:
    """Return whether a variable is set to what the Hub's own client takes for yes."""
    return os.environ.get(name, "").lower() in _TRUE


def main() -> None:
    """Run the download in this process."""
    binary, *arguments = sys.argv[1:]
    revision = os.environ.pop("CAR_VLLM_DOWNLOAD_REVISION", None)
    if not _is_on(_FAST):
        _continue_partial_files()
    hub: Any = import_module("huggingface_hub")
    hub.snapshot_download = _bind_revision(hub.snapshot_download, revision)
    sys.argv = [binary, *arguments]
    runpy.run_path(binary, run_name="__main__")


def _continue_partial_files() -> None:
    """Keep partial files under a fixed name, and continue them."""
    module: Any = import_module("huggingface_hub.file_download")
    original = getattr(module, "_download_to_tmp_and_move", None)
    if original is None or not set(inspect.signature(original).parameters) >= _NEEDED:
        return
    signature = inspect.signature(original)
    # Written in pieces of this size: what the last one held is lost when a connection breaks.
    module.constants.DOWNLOAD_CHUNK_SIZE = _CHUNK

    @functools.wraps(original)
    def continued(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs).arguments
        destination, part = call["destination_path"], call["incomplete_path"]
        if os.path.exists(destination) or call.get("force_download"):  # noqa: PTH110
            return original(*args, **kwargs)
        if _fetch(module, call) and not _has_hash(part, destination.name):
            part.unlink()
            _fetch(module, call)
        return module._chmod_and_move(part, destination)  # noqa: SLF001

    module._download_to_tmp_and_move = continued  # noqa: SLF001


def _fetch(module: Any, call: dict[str, Any]) -> bool:
    """Fetch what is missing of a file, and return whether a part of it was there."""
    expected = call["expected_size"]
    with call["incomplete_path"].open("ab") as file:
        if expected is not None and file.tell() > expected:
            file.truncate(0)
            file.seek(0)
        there = file.tell()
        if expected is None or there < expected:
            module.http_get(
                call["url_to_download"],
                file,
                resume_size=there,
                headers=call["headers"],
                expected_size=expected,
                tqdm_class=call.get("tqdm_class"),
            )
    return bool(there)


def _has_hash(part: Path, name: str) -> bool:
    """Return whether a file holds what its name in the cache says: its hash, as Git or LFS have it.

    A name of another kind proves nothing, so that the file is not believed.
    """
    if len(name) == hashlib.sha256().digest_size * 2:
        found = hashlib.sha256()
    else:
        found = hashlib.sha1(b"blob %d\0" % part.stat().st_size)  # noqa: S324 - Git's own
    with part.open("rb") as file:
        while piece := file.read(_CHUNK):
            found.update(piece)
    return found.hexdigest() == name


def _bind_revision(
    snapshot_download: Callable[..., Any], revision: str | None
) -> Callable[..., Any]:
    """Return a `snapshot_download` of one revision that ends the process where it cannot work."""
    trust = os.environ.pop("CAR_VLLM_DOWNLOAD_TRUST", "") == "1"

    @functools.wraps(snapshot_download)
    def download(model: str, **kwargs: Any) -> Any:
        if revision is not None:
            kwargs["revision"] = revision
        kwargs["ignore_patterns"] = [*_UNREAD, *([] if trust else [_CODE])]
        try:
            commit = _check_listing(model, revision, kwargs)
            if commit and _is_on(_UPDATE):
                sys.stdout.write(f"{COMMIT}{commit}\n")
                sys.stdout.flush()
                fetch(model, {**kwargs, "revision": commit})
            return fetch(model, kwargs)
        except Exception as error:
            _end_if_final(error)
            raise

    def fetch(model: str, kwargs: dict[str, Any]) -> Any:
        if not trust:
            settings = {**kwargs, "allow_patterns": ["*.json"]}
            _check_code(Path(snapshot_download(model, **settings)))
        path = snapshot_download(model, **kwargs)
        if kwargs.get("allow_patterns") and _is_multimodal(Path(path)):
            patterns = [*kwargs["allow_patterns"], *_MEDIA_PATTERNS]
            path = snapshot_download(model, **{**kwargs, "allow_patterns": patterns})
        return path

    return download


def _is_multimodal(snapshot: Path) -> bool:
    try:
        config = json.loads((snapshot / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and not _MEDIA_KEYS.isdisjoint(config)


def _end_if_final(error: Exception) -> None:
    """End the process where no repetition can help."""
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        _end("disk", error)
    if isinstance(error, OSError) and error.errno in _UNUSABLE and error.filename:
        _end("folder", error)
    errors = import_module("huggingface_hub.errors")
    for name, kind in _KINDS:
        known = getattr(errors, name, None)
        if known is not None and isinstance(error, known):
            _end(kind, error)
    if "socksio" in str(error):
        _end("socks", error)
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        _end("refused", error)


def _kind_of(error: Exception) -> str:
    """Return why the Hub could not be asked."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and status >= _SERVER_ERROR:
        return "down"
    if status == _TOO_MANY:
        return "busy"
    return "proxy" if type(error).__name__ == "ProxyError" else "offline"


def _check_code(snapshot: Path) -> None:
    """End the process where a model's settings have the server run code of the model's own."""
    own = os.environ.get("CAR_VLLM_DOWNLOAD_OWN_CODE", "").split(",")
    for file in _entries_of(snapshot, "*.json"):
        if file.name in _DATA:
            continue
        # Disks that ignore case, as macOS's do, take the names for the same.
        name = file.name.casefold()
        found = _read_settings(file)
        if found is None:
            may_ask = name.endswith("config.json") and name != "generation_config.json"
            if may_ask and not name.startswith("."):
                _end("code", f"`{file.name}` cannot be read completely")
            continue
        is_config = name == "config.json"
        if is_config and found.get("model_file") is not None:
            _end("code", f"`model_file` of `{file.name}`")
        known = is_config and found.get("model_type") in own and _MEDIA_KEYS.isdisjoint(found)
        if not known and _has_key(found, "auto_map"):
            _end("code", f"`auto_map` of `{file.name}`")


def _read_settings(file: Path) -> dict[str, Any] | None:
    """Return the object in a file, None where it is none or cannot be read."""
    try:
        if file.stat().st_size > _MOST_SETTINGS:
            return None
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _has_key(found: Any, key: str) -> bool:
    waiting = [found]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if part.get(key):
                return True
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return False


def _check_listing(model: str, revision: str | None, kwargs: dict[str, Any]) -> str | None:
    """End the process where the Hub lists nothing to serve, or more than fits on the disk.

    Returns the commit, None where the Hub does not say.
    """
    hub = import_module("huggingface_hub")
    try:
        found = hub.HfApi().model_info(model, revision=revision, files_metadata=True)
    except Exception as error:  # noqa: BLE001 - the download itself will say what is wrong
        _end_if_final(error)
        if _is_on(_UPDATE):  # the copy that is there is no update
            _end(_kind_of(error), error)
        return None
    files = found.siblings or []
    names = [file.rfilename for file in files]
    if "config.json" not in names or not any(fnmatch(name, "*.safetensors") for name in names):
        _end("no-model", None, names=names[:_MOST_NAMES])
    patterns, ignored = kwargs.get("allow_patterns"), kwargs["ignore_patterns"]
    cache = Path(hub.constants.HF_HUB_CACHE)
    folder = cache / ("models--" + model.replace("/", "--"))
    blobs = folder / "blobs"
    snapshot = folder / "snapshots" / str(found.sha)
    needed = sum(
        _missing(blobs, snapshot, file)
        for file in files
        if (not patterns or any(fnmatch(file.rfilename, pattern) for pattern in patterns))
        and not any(fnmatch(file.rfilename, pattern) for pattern in ignored)
    )
    blobs.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(blobs).free
    if needed and needed + RESERVE > free:
        _end("disk", None, needed=needed + RESERVE, free=free, folder=str(cache))
    return found.sha if isinstance(found.sha, str) else None


def _missing(blobs: Path, snapshot: Path, file: Any) -> int:
    """Return how many bytes of a file are still to be fetched.

    Without symbolic links a whole file lies in the snapshot, and no blob is kept.
    """
    name = (file.lfs.sha256 if file.lfs else file.blob_id) or "unknown"
    whole = snapshot / file.rfilename
    present = [path.stat().st_size for path in _entries_of(blobs, f"{name}*")]
    present += [whole.stat().st_size] if os.path.isfile(whole) else []  # noqa: PTH113
    return max(0, (file.size or 0) - max(present, default=0))


def _entries_of(folder: Path, pattern: str) -> list[Path]:
    """Return what lies in a folder; one that cannot be read is none that holds nothing."""
    try:
        return sorted(path for path in folder.iterdir() if fnmatch(path.name, pattern))
    except FileNotFoundError:
        return []


def _end(kind: str, error: Exception | str | None, **facts: Any) -> None:
    lines = str(error or "").strip().splitlines()
    verdict = {"kind": kind, "said": lines[-1] if lines else "", **facts}
    sys.stdout.write(f"\n{VERDICT}{json.dumps(verdict)}\n")
    sys.stdout.flush()
    raise SystemExit(1)


if __name__ == "__main__":
    main()
