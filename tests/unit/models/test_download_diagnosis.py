"""Why a download failed: what the downloader or its log says, as cause and cure."""

import errno
import json
import os
import pickle
import sys

import pytest

from langchain_car_vllm.models import downloader
from langchain_car_vllm.models.download_diagnosis import (
    _EXPLANATIONS,
    diagnose_download,
    download_error,
)
from langchain_car_vllm.models.downloader import VERDICT
from langchain_car_vllm.models.hub_account import hub_token

VERDICTS = {
    "gated": ({"kind": "gated"}, "gated repository and no HF_TOKEN", "accept the licence"),
    "no-repository": ({"kind": "no-repository"}, "no such repository", "HF_TOKEN"),
    "no-revision": ({"kind": "no-revision"}, "no revision `v9`", "leave `revision` out"),
    "refused": ({"kind": "refused", "said": "no!"}, "the Hub refuses it: no!", "HF_TOKEN"),
    "full": ({"kind": "disk", "said": "ENOSPC"}, "the disk is full", "resumes where it stopped"),
    "no-room": (
        {"kind": "disk", "needed": 20_400_000_000, "free": 400_000_000, "folder": "/hub"},
        "needs 20400 MB more, `/hub` has 400 MB free",
        "free 20000 MB",
    ),
    "strange": ({"kind": "unheard-of", "said": "boo {x}"}, "boo {x}", "download.log`"),
}


@pytest.mark.parametrize(("verdict", "message", "hint"), VERDICTS.values(), ids=VERDICTS)
def test_a_verdict_becomes_cause_and_cure(tmp_path, verdict, message, hint):
    """What the downloader found out is told in one sentence, with one thing to do."""
    log = tmp_path / "download.log"
    log.write_text(f"Downloading\r 50%\n{VERDICT}{json.dumps(verdict)}\n")
    error = diagnose_download("org/tiny", "v9", log)
    assert message in error.message
    assert hint in error.hint
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)


@pytest.mark.parametrize("kind", [*_EXPLANATIONS, "unheard-of"])
def test_only_what_was_under_way_is_said_to_have_failed(kind):
    """Whoever asked the Hub downloaded nothing, and nothing goes on; an update is called one."""
    verdict = {"kind": kind, "said": "boo"}
    asked, fetched, updated = (
        download_error("org/tiny", "v9", verdict, task=task)
        for task in ("ask", "download", "update")
    )
    begins = ("asking the Hub about `org/tiny` failed: ", "`org/tiny` cannot be downloaded: ")
    assert asked.message.startswith(begins)
    assert fetched.message.startswith("`org/tiny` could not be downloaded: ")
    assert updated.message.startswith("`org/tiny` could not be updated: ")
    assert "resumes" not in asked.hint
    assert len({error.message.partition(": ")[2] for error in (asked, fetched, updated)}) == 1
    known = ("gated", "no-repository", "no-revision", "refused", "withheld", "no-room", "disk")
    assert asked.message.startswith(begins[kind in known])


@pytest.mark.parametrize("kind", _EXPLANATIONS)
def test_what_is_worth_another_try_says_so(kind):
    """To whoever reads the hint and to LangChain's retry middleware, unless a change is needed."""
    error = download_error("org/tiny", "v9", {"kind": kind, "said": "boo"}, task="download")
    is_worth_it = "try again" in (error.hint or "") and kind != "disk"
    assert error.is_retryable is pickle.loads(pickle.dumps(error)).is_retryable is is_worth_it


@pytest.mark.parametrize("place", ["HF_TOKEN", "HF_HOME", "HF_TOKEN_PATH", "XDG_CACHE_HOME", None])
def test_a_gated_repository_with_a_token(tmp_path, home, monkeypatch, place):
    """With a token, wherever the Hub's client keeps it, it is the licence that is missing."""
    log = tmp_path / "download.log"
    log.write_text(f'{VERDICT}{{"kind": "gated"}}\n')
    without = diagnose_download("org/tiny", None, log)
    assert "no HF_TOKEN is set" in without.message
    assert "`https://huggingface.co/org/tiny`" in (without.hint or "")
    if place == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", "x")
    else:
        below = {"HF_HOME": "token", "HF_TOKEN_PATH": "", "XDG_CACHE_HOME": "huggingface/token"}
        base = tmp_path / "kept" if place else home
        file = base / below.get(place, ".cache/huggingface/token")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x\n")
        if place:
            monkeypatch.setenv("PLACE", str(tmp_path))
            monkeypatch.setenv(place, "$PLACE/kept")
    assert "not been accepted" in diagnose_download("org/tiny", None, log).message


@pytest.mark.parametrize("kind", ["pipe", "folder", "large", "binary", "loop"])
def test_a_file_that_holds_no_token_is_not_waited_for(tmp_path, monkeypatch, kind):
    """Such as a pipe that nobody writes to."""
    file = tmp_path / "token"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file)
    else:
        file.write_bytes({"large": b"x" * (1 << 21), "binary": b"\xff\xfe"}[kind])
    monkeypatch.setenv("HF_TOKEN_PATH", str(file))
    assert hub_token() is None


def test_a_wrong_name_is_answered_with_near_ones(tmp_path):
    """A repository that does not exist is answered with the catalog's nearest."""
    log = tmp_path / "download.log"
    log.write_text(f'{VERDICT}{{"kind": "no-repository"}}\n')
    error = diagnose_download("mlx-community/Qwen3-4B-4bt", None, log)
    assert "`mlx-community/Qwen3-4B-4bit`" in error.hint


LOGS = {
    "gated": ("401 Client Error.\nCannot access gated repo for url http://x", "gated"),
    "missing": ("401 Client Error.\nRepository Not Found for url: http://x", "no such repository"),
    "refused": ("HTTPError: 403 Client Error: Forbidden", "refuses"),
    "busy": (
        "HfHubHTTPError: 429 Too Many Requests\ncheck your internet connection and try again",
        "too many requests",
    ),
    "disk": ("OSError: [Errno 28] No space left on device", "the disk is full"),
    "quota": ("OSError: [Errno 122] Disk quota exceeded", "the disk is full"),
    "mac's quota": ("OSError: [Errno 69] Disc quota exceeded", "the disk is full"),
    "folder": (
        "PermissionError: [Errno 13] Permission denied: '/Volumes/SSD/hub'",
        "cannot be written to: PermissionError: [Errno 13] Permission denied: '/Volumes/SSD/hub'",
    ),
    "dns": ("ConnectError: [Errno -2] Name or service not known", "cannot be reached"),
    "mac": ("ConnectError: [Errno 8] nodename nor servname provided", "cannot be reached"),
    "cut": ("peer closed connection without sending complete message body", "kept breaking"),
    "down": (
        "HfHubHTTPError: Server error '503 Service Unavailable'\ncheck your internet connection",
        "not working at the moment",
    ),
    "python": ("Traceback\nValueError: strange", "ValueError: strange"),
    "silent": ("", "it gave no reason"),
    "bytes": (b"\xff\xfe\x00", "it gave no reason"),
}


@pytest.mark.parametrize(("text", "message"), LOGS.values(), ids=LOGS)
def test_a_log_without_a_verdict_is_read(tmp_path, text, message):
    """Binaries that are not run through the downloader are judged by what they print."""
    log = tmp_path / "download.log"
    log.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in diagnose_download("org/tiny", None, log).message


@pytest.mark.parametrize(("number", "cure"), [(1, "Privacy & Security"), (13, "make it writable")])
def test_a_folder_that_macos_keeps_private_has_another_cure(tmp_path, monkeypatch, number, cure):
    """Nobody makes a disk writable that a program lacks leave for."""
    monkeypatch.setattr(sys, "platform", "darwin")
    log = tmp_path / "download.log"
    for text in (
        f"PermissionError: [Errno {number}] Operation not permitted: '/Volumes/SSD/hub'",
        f'{VERDICT}{{"kind": "folder", "said": "[Errno {number}] Operation not permitted"}}',
    ):
        log.write_text(f"{text}\n")
        assert cure in diagnose_download("org/tiny", None, log).hint


def test_a_log_that_shows_the_token_keeps_it(tmp_path, monkeypatch):
    """Libraries write a header that they refuse into their errors."""
    monkeypatch.setenv("HF_TOKEN", "hf_hush")
    log = tmp_path / "download.log"
    log.write_text("LocalProtocolError: Illegal header value b'Bearer hf_hush'\n")
    error = diagnose_download("org/tiny", None, log)
    assert "hush" not in str(error)
    assert "Illegal header value" in error.message


def test_a_killed_download_says_so(tmp_path):
    """A child that was killed is no riddle."""
    error = diagnose_download("org/tiny", None, tmp_path / "no-log", exit_code=-9)
    assert "killed by signal 9" in error.message
    assert "resumes where it stopped" in error.hint


def test_a_verdict_that_is_cut_off_is_not_read(tmp_path):
    """A log that ends within the verdict is judged by its text."""
    log = tmp_path / "download.log"
    log.write_text(f'No space left on device\n{VERDICT}{{"kind": "ga')
    assert "the disk is full" in diagnose_download("org/tiny", None, log).message


@pytest.mark.parametrize("number", [*downloader._UNUSABLE, errno.ENOSPC])
def test_a_folder_that_takes_no_files_ends_at_once(capsys, tmp_path, number):
    """Three tries help where the network fails, and not where the disk refuses."""
    error = OSError(number, os.strerror(number), str(tmp_path / "hub"))
    with pytest.raises(SystemExit):
        downloader._end_if_final(error)
    log = tmp_path / "download.log"
    log.write_text(capsys.readouterr().out)
    told = diagnose_download("org/tiny", None, log)
    if number == errno.ENOSPC:
        assert "the disk is full" in told.message
    else:
        assert f"cannot be written to: {error}" in told.message
        assert "HF_HOME" in told.hint
