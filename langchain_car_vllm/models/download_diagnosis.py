"""Why a model cannot be had: what the Hub, or a download's log, says, as cause and cure."""

import os
import sys
from pathlib import Path
from typing import Any, Literal

from langchain_car_vllm.environment import HF_HUB_DISABLE_IMPLICIT_TOKEN
from langchain_car_vllm.errors import CarVllmError, ModelDownloadError, UntrustedCodeError
from langchain_car_vllm.models.downloader import VERDICT
from langchain_car_vllm.models.hub_account import hub_endpoint, hub_token, is_token_kept_back
from langchain_car_vllm.models.ids import nearest_ids
from langchain_car_vllm.models.model_files import PRIVACY_HINT
from langchain_car_vllm.models.servable import find_missing
from langchain_car_vllm.models.snapshot import repository_folder
from langchain_car_vllm.paths import RECONNECT, lost_disk
from langchain_car_vllm.support.json_objects import read_json_object
from langchain_car_vllm.support.printable import on_one_line

Task = Literal["ask", "download", "update"]
"""What was under way: nothing is fetched of a model that the Hub is only asked about."""

_TAIL_BYTES = 32_768
_MB = 1_000_000


def diagnose_download(
    source: str,
    revision: str | None,
    log: Path,
    exit_code: int | None = None,
    *,
    task: Task = "download",
) -> CarVllmError:
    """Return what a failed download's log means."""
    text = log_tail(log)
    verdict = _verdict(text) or _guess(text)
    if exit_code is not None and exit_code < 0 and verdict["kind"] == "unknown":
        verdict = {"kind": "killed", "said": f"signal {-exit_code}"}
    is_denied = sys.platform == "darwin" and "[Errno 1]" in str(verdict.get("said"))
    if verdict["kind"] == "folder" and is_denied:
        verdict["kind"] = "private"
    folder = repository_folder(source)
    if folder is not None and (broken := lost_disk(folder)):
        verdict = {"kind": "unconnected", "said": broken}
    if verdict["kind"] == "code":
        return UntrustedCodeError(source, on_one_line(verdict.get("said")))
    if verdict["kind"] == "no-model":
        return unservable(source, verdict.get("names"))
    return download_error(source, revision, {"log": log, **verdict}, task=task)


def no_model(source: str, reason: str = "", hint: str = "") -> ModelDownloadError:
    """Return the error for a repository that lacks what the server reads."""
    return ModelDownloadError(
        f"`{source}` has no model that vllm-mlx can serve{f': {reason}' if reason else ''}",
        hint=hint or "choose a repository with `config.json`, a tokenizer and safetensors weights",
    )


def unservable(source: str, names: Any) -> ModelDownloadError:
    """Return the error for a repository whose files are of no use to the server."""
    listed = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    obstacle = find_missing(listed, lambda _name: None)
    return no_model(source, obstacle.reason, obstacle.hint) if obstacle else no_model(source)


def download_error(
    source: str, revision: str | None, verdict: dict[str, Any], *, task: Task
) -> ModelDownloadError:
    """Return the error for a verdict.

    Args:
        source: The Hub repository.
        revision: As it was asked for.
        verdict: `kind` of the failure, what was `said` about it, and where the disk is too small
            `needed`, `free` (bytes) and `folder`.
        task: What was under way.
    """
    message, hint = _explain(source, revision, verdict, task)
    what = _FAILURES[task]
    if task == "ask" and verdict["kind"] not in _ANSWERED:
        what = "asking the Hub about `{source}` failed"
    error = ModelDownloadError(f"{what.format(source=source)}: {message}", hint=hint)
    error.is_retryable = verdict["kind"] in _PASSING
    return error


def stalled_error(what: str, seconds: float) -> ModelDownloadError:
    """Return the error for a download that was given up.

    Args:
        what: What was downloaded.
        seconds: How long nothing of it came.
    """
    error = ModelDownloadError(
        f"the download of {what} made no progress for {seconds:g} s",
        hint="try again: it resumes where it stopped; CAR_VLLM_MLX_DOWNLOAD_STALL=0 waits forever",
    )
    error.is_retryable = True
    return error


def refusal_error(source: str, revision: str | None, verdict: dict[str, Any]) -> CarVllmError:
    """Return the error for what the Hub said when it was asked about a model.

    Args:
        source: The Hub repository.
        revision: As it was asked for.
        verdict: As `download_error` takes it, or with the `obstacle` of its files.
    """
    if "obstacle" in verdict:
        reason, hint, is_code = verdict["obstacle"]
        if is_code:
            return UntrustedCodeError(on_one_line(source), reason)
        return no_model(source, reason, hint)
    return download_error(source, revision or "main", verdict, task="ask")


def log_tail(log: Path, most: int = _TAIL_BYTES) -> str:
    """Return the end of what a child wrote, at most so many bytes, nothing where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _verdict(text: str) -> dict[str, Any] | None:
    lines = [line for line in text.splitlines() if line.startswith(VERDICT)]
    found = read_json_object(lines[-1].removeprefix(VERDICT)) if lines else None
    return found if found is not None and "kind" in found else None


_MARKS = (
    ("gated", ("gated repo", "GatedRepoError")),
    ("no-revision", ("Revision Not Found", "RevisionNotFoundError", "Invalid rev id")),
    ("no-repository", ("Repository Not Found", "RepositoryNotFoundError", "404 Client Error")),
    ("refused", ("401 Client Error", "403 Client Error", "403 Forbidden", "401 Unauthorized")),
    ("busy", ("429 Client Error", "429 Too Many Requests")),
    (
        "disk",
        (
            *("No space left on device", "Not enough free disk space"),
            *("Disk quota exceeded", "Disc quota exceeded"),
        ),
    ),
    (
        "folder",
        (
            *("Permission denied: '", "Operation not permitted: '", "Read-only file system: '"),
            "Not a directory: '",
        ),
    ),
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
            status = "the Hub is not working at the moment" if "Server error" in text else ""
            return {"kind": "down" if status else kind, "said": said}
    return {"kind": "unknown", "said": said}


_FAILURES: dict[Task, str] = {
    "ask": "`{source}` cannot be downloaded",
    "download": "`{source}` could not be downloaded",
    "update": "`{source}` could not be updated",
}
_ANSWERED = {"gated", "no-repository", "no-revision", "refused", "withheld", "no-room", "disk"}
"""The kinds in which it is known that the model cannot be had."""
_PASSING = {"offline", "slow", "cut", "killed", "down", "busy"}
"""The kinds that may be over when somebody tries again."""
_GOES_ON = "; the download resumes where it stopped"
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
    "refused": ("the Hub refuses it: {said}", "set HF_TOKEN to a token that can read it"),
    "no-room": (
        "it needs {needed} MB more, `{folder}` has {free} MB free",
        "free {lacking} MB, or set HF_HOME to a larger disk",
    ),
    "disk": ("the disk is full", "free some disk space and try again{goes_on}"),
    "folder": (
        "the models folder cannot be written to: {said}",
        "make it writable for you, or set HF_HOME to a folder that you can write to",
    ),
    "private": ("the models folder cannot be written to: {said}", PRIVACY_HINT),
    "unconnected": ("{said}", f"{RECONNECT}, or set HF_HOME"),
    "offline": (
        "the Hub cannot be reached",
        "connect to the network and try again{goes_on}",
    ),
    "proxy": (
        "the proxy blocks the connection: {said}",
        "check HTTPS_PROXY, ALL_PROXY and NO_PROXY",
    ),
    "socks": (
        "the proxy is a SOCKS proxy, and this install of vllm-mlx lacks `socksio`",
        "run `car-vllm install --upgrade`, which brings it, or set HTTPS_PROXY to an HTTP proxy",
    ),
    "certificate": (
        "the certificate of the Hub, or of a proxy in front of it, is not trusted: {said}",
        "set SSL_CERT_FILE to the certificates of your network, or connect to another one",
    ),
    "strange": (
        "something other than the Hub answered: `{said}`",
        "log in to the network in a browser, or check HF_ENDPOINT",
    ),
    "slow": (
        "the Hub, or a proxy in its place, did not finish its answer within {said} s",
        "try again, or check the network and HF_ENDPOINT",
    ),
    "cut": ("the connection kept breaking", "try again{goes_on}"),
    "killed": ("it was killed by {said}", "try again{goes_on}"),
    "down": ("the Hub is not working at the moment", "try again later"),
    "busy": (
        "the Hub has received too many requests from this network",
        "try again in a few minutes{goes_on}; with HF_TOKEN set it allows more",
    ),
    "withheld": ("the Hub withholds it: {said}", "choose another repository"),
    "unknown": ("{said}", "read `{log}`"),
}


def _explain(
    source: str, revision: str | None, verdict: dict[str, Any], task: Task
) -> tuple[str, str]:
    kind = "no-room" if "needed" in verdict else str(verdict["kind"])
    message, hint = _EXPLANATIONS.get(kind, _EXPLANATIONS["unknown"])
    needed, free = (int(verdict.get(name, 0)) // _MB for name in ("needed", "free"))
    facts = {
        "token": _token_state(),
        "page": f"{hub_endpoint()}/{source}",
        "near": _near(source),
        "revision": revision,
        "said": _without_token(str(verdict.get("said") or "it gave no reason")),
        "needed": needed,
        "free": free,
        "lacking": max(1, needed - free),
        "folder": verdict.get("folder"),
        "goes_on": "" if task == "ask" else _GOES_ON,
        "log": verdict.get("log", "the log of the download"),
    }
    return message.format(**facts), hint.format(**facts)


def _without_token(text: str) -> str:
    """Return what somebody said without the token, which HTTP libraries show where it is odd."""
    token = hub_token()
    return text.replace(token, "***") if token else text


def _token_state() -> str:
    if is_token_kept_back():
        return f"the token is not sent because of {HF_HUB_DISABLE_IMPLICIT_TOKEN.name}"
    if hub_token():
        return "its licence has not been accepted by the account of your token"
    return "no HF_TOKEN is set"


def _near(source: str) -> str:
    near = " or ".join(f"`{name}`" for name in nearest_ids(source) if name != source)
    private = "for a private repository set HF_TOKEN"
    return f"did you mean {near}? {private}" if near else f"check the name; {private}"
