"""The download stage: what is run, how far it is, and why it failed.

The supervisor runs the child and watches it; what is here is pure but for reading files.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from langchain_car_vllm.environment import (
    CAR_VLLM_DOWNLOAD_OWN_CODE,
    CAR_VLLM_DOWNLOAD_REVISION,
    CAR_VLLM_DOWNLOAD_TRUST,
    CAR_VLLM_DOWNLOAD_UPDATE,
    HF_HUB_OFFLINE,
    HF_XET_HIGH_PERFORMANCE,
    TRANSFORMERS_OFFLINE,
    is_hub_flag_on,
)
from langchain_car_vllm.errors import CarVllmError, ModelDownloadError, UntrustedCodeError
from langchain_car_vllm.models.downloader import COMMIT, VERDICT
from langchain_car_vllm.models.families import family_facts, own_code_types
from langchain_car_vllm.models.hub_account import hub_endpoint, hub_token
from langchain_car_vllm.models.ids import nearest_ids
from langchain_car_vllm.models.model_files import printable
from langchain_car_vllm.models.servable import find_missing
from langchain_car_vllm.models.snapshot import (
    find_commit,
    listed_size,
    repository_folder,
    tree_listing,
    wanted_files,
)
from langchain_car_vllm.runtime import interpreter_of

_SCRIPT = Path(__file__).with_name("downloader.py").read_text(encoding="utf-8")
_TAIL_BYTES = 32_768
_BLOB = re.compile(r"[\w\-]{1,128}", re.ASCII)
_MB = 1_000_000


class DownloadCommand(NamedTuple):
    """A download as a child process.

    Attributes:
        program: A console script, to be run like `vllm-mlx` itself.
        arguments: Its arguments.
        environment: What is added to the user's environment.
    """

    program: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]

    def complete(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the child.

        Args:
            environment: The user's; a timeout of his own stays.
        """
        return {"HF_HUB_DOWNLOAD_TIMEOUT": "60", **environment, **self.environment}


def check_may_download(source: str, *, auto_pull: bool = True) -> None:
    """Refuse a download that is not wanted, before anything is started.

    Args:
        source: The Hub repository.
        auto_pull: Whether the user lets models be downloaded.

    Raises:
        ModelDownloadError: `auto_pull` is off, or `HF_HUB_OFFLINE` is set.
    """
    if not auto_pull:
        raise ModelDownloadError(
            f"`{source}` is not on this machine, and `auto_pull=False` forbids the download",
            hint=f"run `car-vllm pull {source}`",
        )
    for variable in (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE):
        if is_hub_flag_on(variable):
            name = variable.name
            raise ModelDownloadError(
                f"`{source}` is not on this machine, and {name} forbids the download",
                hint=f"unset {name} once, or choose a model that `car-vllm list` shows",
            )


def download_command(
    directory: Path,
    binary: Path,
    source: str,
    revision: str | None = None,
    *,
    trust: bool = False,
    update: bool = False,
) -> DownloadCommand:
    """Return the child that downloads a model through the runtime's `vllm-mlx download`.

    A partial file is kept and continued; see `langchain_car_vllm.models.downloader`.

    Args:
        directory: Where a script may be written that outlives this process.
        binary: The runtime's `vllm-mlx`.
        source: The Hub repository.
        revision: A branch, tag or commit; None is the default branch.
        trust: Whether the code that the model brings is fetched too, and may be used.
        update: Whether it fails where the Hub cannot be asked for a newer commit.

    Raises:
        ModelDownloadError: A revision is asked of a binary that cannot be given one.
    """
    arguments = ["download", source, *(["--mllm"] if family_facts(source).media else [])]
    # tqdm shows bytes on a terminal only, unless it believes that something else is above it.
    environment = {"TQDM_POSITION": "-1", "PYTHONUNBUFFERED": "1"}
    interpreter = interpreter_of(binary)
    if interpreter is None:
        if revision is not None:
            raise ModelDownloadError(
                f"`{binary}` is not a Python script, so it cannot be given a revision",
                hint=f"download `{source}` at `{revision}` yourself and name the directory",
            )
        return DownloadCommand(binary, tuple(arguments), environment)
    script = directory / "downloader.py"
    script.write_text(f"{_first_lines(interpreter)}\n{_SCRIPT}", encoding="utf-8")
    script.chmod(0o700)
    if revision is not None:
        environment[CAR_VLLM_DOWNLOAD_REVISION.name] = revision
    environment[CAR_VLLM_DOWNLOAD_OWN_CODE.name] = ",".join(own_code_types())
    if update:
        environment[CAR_VLLM_DOWNLOAD_UPDATE.name] = "1"
    if trust:
        environment[CAR_VLLM_DOWNLOAD_TRUST.name] = "1"
    if not is_hub_flag_on(HF_XET_HIGH_PERFORMANCE):
        environment["HF_HUB_DISABLE_XET"] = "1"
    return DownloadCommand(script, (str(binary), *arguments), environment)


def _first_lines(interpreter: Path) -> str:
    """Return a console script's beginning, in the form that paths with spaces need."""
    return f"#!/bin/sh\n'''exec' {shlex.quote(str(interpreter))} \"$0\" \"$@\"\n' '''"


def measure_download(source: str, revision: str | None = None) -> tuple[int, int | None]:
    """Return how many bytes of a model are on the disk, and how many there will be.

    Counted in the Hub cache, since the child's own progress bars skip what it continues. The total
    is None until the Hub's listing has arrived.

    Args:
        source: The Hub repository.
        revision: A branch, tag or commit; None is the default branch.
    """
    folder = repository_folder(source)
    if folder is None:
        return 0, None
    blobs = folder / "blobs"
    commit = find_commit(source, revision)
    listing = tree_listing(folder, commit) if commit else None
    if commit is None or listing is None:
        return sum(map(_size, blobs.glob("*"))), None
    done = total = 0
    snapshot = folder / "snapshots" / commit
    for name in wanted_files(snapshot, listing):
        size = listed_size(listing[name]) or 0
        # Without symbolic links a whole file lies in the snapshot itself.
        parts = [snapshot / name, *_blobs(blobs, listing[name])]
        total += size
        done += min(size, max(map(_size, parts)))
    return done, total


def _blobs(folder: Path, entry: Mapping[str, Any]) -> list[Path]:
    """Return where a file's content may lie, whole and in part."""
    name = entry.get("lfs_sha256") or entry.get("blob_id")
    if not isinstance(name, str) or not _BLOB.fullmatch(name):
        return []
    return [folder / name, *folder.glob(f"{name}*.incomplete")]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def diagnose_download(
    source: str, revision: str | None, log: Path, exit_code: int | None = None
) -> CarVllmError:
    """Return what a failed download's log means.

    Args:
        source: The Hub repository.
        revision: As it was asked for.
        log: What the child wrote.
        exit_code: Of the child, negative for a signal, None where unknown.
    """
    text = _tail(log)
    verdict = _verdict(text) or _guess(text)
    if exit_code is not None and exit_code < 0 and verdict["kind"] == "unknown":
        verdict = {"kind": "killed", "said": f"signal {-exit_code}"}
    if verdict["kind"] == "code":
        return UntrustedCodeError(source, printable(verdict.get("said")))
    if verdict["kind"] == "no-model":
        return unservable(source, verdict.get("names"))
    return download_error(source, revision, verdict)


def no_model(source: str, reason: str = "", hint: str = "") -> ModelDownloadError:
    """Return the error for a repository that lacks what the server reads.

    Args:
        source: The Hub repository.
        reason: What it lacks.
        hint: What to do about it.
    """
    return ModelDownloadError(
        f"`{source}` holds no model that vllm-mlx can serve{f': {reason}' if reason else ''}",
        hint=hint or "choose a repository with `config.json`, a tokenizer and safetensors weights",
    )


def unservable(source: str, names: Any) -> ModelDownloadError:
    """Return the error for a repository whose files are of no use to the server.

    Args:
        source: The Hub repository.
        names: Its files.
    """
    listed = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    obstacle = find_missing(listed, lambda _name: None)
    return no_model(source, obstacle.reason, obstacle.hint) if obstacle else no_model(source)


def download_error(
    source: str, revision: str | None, verdict: dict[str, Any]
) -> ModelDownloadError:
    """Return the error for a verdict.

    Args:
        source: The Hub repository.
        revision: As it was asked for.
        verdict: `kind` of the failure, what was `said` about it, and where the disk is too small
            `needed`, `free` (bytes) and `folder`.
    """
    message, hint = _explain(source, revision, verdict)
    return ModelDownloadError(f"`{source}` could not be downloaded: {message}", hint=hint)


def announced_commit(log: Path) -> str | None:
    """Return the commit that an update fetches, None before it is known.

    Args:
        log: What the child wrote.
    """
    lines = [line for line in _tail(log).splitlines() if line.startswith(COMMIT)]
    return lines[-1].removeprefix(COMMIT).strip() if lines else None


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _verdict(text: str) -> dict[str, Any] | None:
    lines = [line for line in text.splitlines() if line.startswith(VERDICT)]
    try:
        found = json.loads(lines[-1].removeprefix(VERDICT)) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and "kind" in found else None


_MARKS = (
    ("gated", ("gated repo", "GatedRepoError")),
    ("no-revision", ("Revision Not Found", "RevisionNotFoundError", "Invalid rev id")),
    ("no-repository", ("Repository Not Found", "RepositoryNotFoundError", "404 Client Error")),
    ("refused", ("401 Client Error", "403 Client Error", "403 Forbidden", "401 Unauthorized")),
    ("disk", ("No space left on device", "Not enough free disk space", "Disk quota exceeded")),
    ("cut", ("peer closed connection", "Consistency check failed", "IncompleteRead")),
    ("socks", ("socksio",)),
    ("proxy", ("ProxyError", "proxy")),
    (
        "offline",
        (
            "Name or service not known",
            "nodename nor servname",
            "Temporary failure in name resolution",
            "Connection refused",
            "Network is unreachable",
            "ConnectError",
            "ConnectTimeout",
            "timed out",
            "check your internet connection",
        ),
    ),
)


def _guess(text: str) -> dict[str, Any]:
    said = next((line.strip() for line in reversed(text.splitlines()) if "Error" in line), "")
    for kind, marks in _MARKS:
        if any(mark in text for mark in marks):
            status = "the Hub is out of order" if "Server error" in text else ""
            return {"kind": "down" if status else kind, "said": said}
    return {"kind": "unknown", "said": said}


_GOES_ON = "the download goes on where it was"
_EXPLANATIONS = {
    "gated": (
        "it is a gated repository and {token}",
        "accept the licence at `{page}`, and set HF_TOKEN to a token of that account",
    ),
    "no-repository": ("the Hub has no such repository, or it is private", "{near}"),
    "no-revision": (
        "it has no revision `{revision}`",
        "leave `revision` out, or name a branch, a tag or a commit of the repository",
    ),
    "refused": ("the Hub refuses it: {said}", "set HF_TOKEN to a token that may read it"),
    "no-room": (
        "it needs {needed} MB more, `{folder}` has {free} MB free",
        "free {lacking} MB, or set HF_HOME to a larger disk",
    ),
    "disk": ("the disk is full", f"free some disk space and try again; {_GOES_ON}"),
    "offline": (
        "the Hub cannot be reached",
        f"connect to the network and try again; {_GOES_ON}",
    ),
    "proxy": (
        "the proxy does not let it through: {said}",
        "check HTTPS_PROXY, ALL_PROXY and NO_PROXY",
    ),
    "socks": (
        "the proxy is a SOCKS one, and this install of vllm-mlx lacks `socksio`",
        "run `car-vllm install --upgrade`, which brings it, or set HTTPS_PROXY to an HTTP proxy",
    ),
    "certificate": (
        "the certificate of the Hub, or of a proxy before it, is not trusted: {said}",
        "set SSL_CERT_FILE to the certificates of your network, or connect to another one",
    ),
    "strange": (
        "what answers is not the Hub: `{said}`",
        "log in to the network in a browser, or check HF_ENDPOINT",
    ),
    "slow": (
        "what answers for the Hub did not finish within {said} s",
        "try again, or check the network and HF_ENDPOINT",
    ),
    "cut": ("the connection broke again and again", f"try again; {_GOES_ON}"),
    "killed": ("it was killed by {said}", f"try again; {_GOES_ON}"),
    "down": ("the Hub is out of order", "try again later"),
    "unknown": ("{said}", "read the log of the download"),
}


def _explain(source: str, revision: str | None, verdict: dict[str, Any]) -> tuple[str, str]:
    kind = "no-room" if "needed" in verdict else str(verdict["kind"])
    message, hint = _EXPLANATIONS.get(kind, _EXPLANATIONS["unknown"])
    needed, free = (int(verdict.get(name, 0)) // _MB for name in ("needed", "free"))
    facts = {
        "token": _token_state(),
        "page": f"{hub_endpoint()}/{source}",
        "near": _near(source),
        "revision": revision,
        "said": verdict.get("said") or "it said nothing about why",
        "needed": needed,
        "free": free,
        "lacking": max(1, needed - free),
        "folder": verdict.get("folder"),
    }
    return message.format(**facts), hint.format(**facts)


def _token_state() -> str:
    if hub_token():
        return "its licence has not been accepted by the account of your token"
    return "no HF_TOKEN is set"


def _near(source: str) -> str:
    near = " or ".join(f"`{name}`" for name in nearest_ids(source) if name != source)
    private = "for a private repository set HF_TOKEN"
    return f"did you mean {near}? {private}" if near else f"check the name; {private}"
