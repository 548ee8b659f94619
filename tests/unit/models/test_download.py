import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from langchain_car_vllm.errors import ModelDownloadError
from langchain_car_vllm.models import downloader
from langchain_car_vllm.models.download import (
    check_may_download,
    download_command,
    measure_download,
)
from langchain_car_vllm.models.download_diagnosis import (
    _EXPLANATIONS,
    diagnose_download,
    download_error,
)
from langchain_car_vllm.models.downloader import VERDICT
from langchain_car_vllm.models.hub_account import hub_token
from langchain_car_vllm.runtime import interpreter_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(home):
    return home / ".cache" / "huggingface" / "hub" / "models--org--tiny"


def list_files(cache, **sizes):
    files = {
        name.replace("_", "."): {"size": size, "blob_id": f"blob-{name}"}
        for name, size in sizes.items()
    }
    files["model.safetensors"] = {"size": 1000, "blob_id": "x", "lfs_sha256": "weights"}
    files["README.md"] = {"size": 10**9, "blob_id": "never"}
    (cache / "trees").mkdir(parents=True)
    (cache / "trees" / f"{COMMIT}.json").write_text(
        json.dumps({"format_version": 1, "files": files})
    )
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    (cache / "blobs").mkdir()


def test_nothing_is_measured_before_a_download():
    """Before the listing has arrived nobody knows how much it will be."""
    assert measure_download("org/tiny") == (0, None)


def test_bytes_are_counted_on_the_disk(cache):
    """Finished and partial files count, up to what the listing says they will be."""
    list_files(cache, config_json=20, tokenizer_json=30)
    assert measure_download("org/tiny") == (0, 1050)
    (cache / "blobs" / "blob-config_json").write_bytes(b"x" * 20)
    (cache / "blobs" / "weights.incomplete").write_bytes(b"x" * 400)
    assert measure_download("org/tiny") == (420, 1050)
    (cache / "blobs" / "weights.0a1b2c3d.incomplete").write_bytes(b"x" * 700)
    assert measure_download("org/tiny") == (720, 1050)
    (cache / "blobs" / "weights").write_bytes(b"x" * 5000)
    assert measure_download("org/tiny") == (1020, 1050)
    assert measure_download("org/tiny", COMMIT) == (1020, 1050)


def test_without_a_listing_all_bytes_count(cache):
    """Clients that keep no listing still show that something grows."""
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "a.incomplete").write_bytes(b"x" * 70)
    assert measure_download("org/tiny") == (70, None)


def test_a_forbidden_download_is_refused():
    """`auto_pull=False` refuses, and names the command that downloads."""
    check_may_download("org/tiny")
    with pytest.raises(ModelDownloadError, match="auto_pull=False") as caught:
        check_may_download("org/tiny", auto_pull=False)
    assert "car-vllm pull org/tiny" in caught.value.hint


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_is_respected(monkeypatch, variable):
    """The Hub's own offline switches forbid a download; an empty or zero one does not."""
    for value in ("", "0", "false"):
        monkeypatch.setenv(variable, value)
        check_may_download("org/tiny")
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ModelDownloadError, match=variable):
        check_may_download("org/tiny")


@pytest.mark.parametrize("link", ["huggingface", "huggingface/hub/models--org--tiny"])
def test_a_folder_of_models_whose_disk_is_gone_is_refused(home, link):
    """Its link is in the way of every download; the error names it before anything is fetched."""
    place = home / ".cache" / link
    place.parent.mkdir(parents=True)
    place.symlink_to("/Volumes/Models")
    with pytest.raises(ModelDownloadError, match="is a link to `/Volumes/Models`") as caught:
        check_may_download("org/tiny")
    assert caught.value.hint.startswith("connect the disk")


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_a_disk_that_a_variable_names_and_is_gone_is_refused(monkeypatch, variable):
    """Without a link on the way; nobody but the system makes folders where macOS connects disks."""
    monkeypatch.setenv(variable, "/Volumes/Models/hub")
    with pytest.raises(ModelDownloadError, match="disk `Models` is not connected") as caught:
        check_may_download("org/tiny")
    assert caught.value.hint.startswith("connect the disk")


def test_a_model_that_may_be_on_a_disk_of_lm_studio_says_so(home, monkeypatch):
    """It would be downloaded a second time, or was said to be nowhere."""
    (home / ".lmstudio").mkdir()
    settings = home / ".lmstudio" / "settings.json"
    settings.write_text('{"downloadsFolder": "/Volumes/Models/lm"}')
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelDownloadError, match="not seen: the disk `Models` is not connected"):
        check_may_download("org/tiny")


def test_a_disk_that_was_taken_away_during_a_download_is_named(home, tmp_path):
    """What the download itself says of it is that a file exists."""
    (home / ".cache").mkdir()
    (home / ".cache" / "huggingface").symlink_to("/Volumes/Models")
    log = tmp_path / "log"
    log.write_text("FileExistsError: [Errno 17] File exists: '/home/.cache/huggingface'\n")
    error = diagnose_download("org/tiny", None, log, 1)
    assert "is a link to `/Volumes/Models`, which is not there" in error.message
    assert error.hint.startswith("connect the disk")


def make_binary(folder):
    folder.mkdir(parents=True)
    python = folder / "python3"
    python.symlink_to(sys.executable)
    binary = folder / "vllm-mlx"
    binary.write_text(f"#!/bin/sh\n'''exec' '{python}' \"$0\" \"$@\"\n' '''\nprint('hello')\n")
    binary.chmod(0o755)
    return binary


@pytest.mark.parametrize("name", ["plain", "with space", "it's"])
def test_the_command_runs_under_the_runtimes_python(tmp_path, monkeypatch, name):
    """The child is a console script of the runtime's Python, wherever that is."""
    binary = make_binary(tmp_path / "env" / "bin")
    folder = tmp_path / name
    moved = (tmp_path / "env").rename(folder)
    binary = moved / "bin" / "vllm-mlx"
    quoted = str(moved / "bin" / "python3").replace("'", "'\"'\"'")
    binary.write_text(f"#!/bin/sh\n'''exec' '{quoted}' \"$0\" \"$@\"\n' '''\nprint('hello')\n")
    command = download_command(tmp_path, binary, "org/tiny")
    assert interpreter_of(command.program) == interpreter_of(binary) == moved / "bin" / "python3"
    assert command.arguments == (str(binary), "download", "org/tiny")
    assert "CAR_VLLM_DOWNLOAD_REVISION" not in command.environment
    # Without huggingface_hub in this Python it gets as far as to miss it.
    ended = subprocess.run(
        [command.program, *command.arguments], capture_output=True, text=True, check=False
    )
    assert "No module named 'huggingface_hub'" in ended.stderr


def test_media_models_are_fetched_whole(tmp_path):
    """For a multimodal family the server's broader patterns are asked for."""
    binary = make_binary(tmp_path / "env")
    command = download_command(tmp_path, binary, "mlx-community/Qwen3.6-27B-4bit")
    assert command.arguments[-1] == "--mllm"


def test_a_revision_goes_into_the_environment(tmp_path):
    """The binary has no option for a revision, so that the script is told."""
    command = download_command(tmp_path, make_binary(tmp_path / "env"), "org/tiny", "v1")
    assert command.environment["CAR_VLLM_DOWNLOAD_REVISION"] == "v1"


def test_fast_transfer_is_the_users_choice(tmp_path, monkeypatch):
    """Xet starts partial files anew, so that it is used only where the user asks for it."""
    binary = make_binary(tmp_path / "env")
    assert download_command(tmp_path, binary, "org/tiny").environment["HF_HUB_DISABLE_XET"] == "1"
    monkeypatch.setenv("HF_XET_HIGH_PERFORMANCE", "1")
    command = download_command(tmp_path, binary, "org/tiny")
    assert "HF_HUB_DISABLE_XET" not in command.environment


@pytest.mark.parametrize(
    ("name", "value", "fast"),
    [
        ("HF_XET_HIGH_PERFORMANCE", "0", False),
        ("HF_XET_HIGH_PERFORMANCE", "YES", True),
        ("HF_HUB_ENABLE_HF_TRANSFER", "1", False),
    ],
)
def test_fast_transfer_is_what_the_hubs_client_takes_for_it(
    tmp_path, monkeypatch, name, value, fast
):
    """A variable that it ignores, or reads as no, must not cost the user what he has fetched."""
    monkeypatch.setenv(name, value)
    command = download_command(tmp_path, make_binary(tmp_path / "bin"), "org/tiny")
    assert ("HF_HUB_DISABLE_XET" not in command.environment) is fast


def test_a_timeout_of_the_users_stays(tmp_path):
    """Ours is longer than the Hub's, and no more than a default."""
    command = download_command(tmp_path, make_binary(tmp_path / "bin"), "org/tiny")
    assert command.complete({})["HF_HUB_DOWNLOAD_TIMEOUT"] == "60"
    theirs = {"HF_HUB_DOWNLOAD_TIMEOUT": "300", "TQDM_POSITION": "3"}
    assert command.complete(theirs)["HF_HUB_DOWNLOAD_TIMEOUT"] == "300"
    assert command.complete(theirs)["TQDM_POSITION"] == "-1"


def test_a_binary_that_is_no_script(tmp_path):
    """A binary of an unknown kind is run as it is; it cannot be given a revision."""
    binary = tmp_path / "vllm-mlx"
    binary.write_bytes(b"\x7fELF")
    command = download_command(tmp_path, binary, "org/tiny")
    assert (command.program, command.arguments) == (binary, ("download", "org/tiny"))
    with pytest.raises(ModelDownloadError, match="revision"):
        download_command(tmp_path, binary, "org/tiny", "v1")


VERDICTS = {
    "gated": ({"kind": "gated"}, "gated repository and no HF_TOKEN", "accept the licence"),
    "no-repository": ({"kind": "no-repository"}, "no such repository", "HF_TOKEN"),
    "no-revision": ({"kind": "no-revision"}, "no revision `v9`", "leave `revision` out"),
    "refused": ({"kind": "refused", "said": "no!"}, "the Hub refuses it: no!", "HF_TOKEN"),
    "full": ({"kind": "disk", "said": "ENOSPC"}, "the disk is full", "goes on where it was"),
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
    assert "goes on" not in asked.hint
    assert len({error.message.partition(": ")[2] for error in (asked, fetched, updated)}) == 1
    known = ("gated", "no-repository", "no-revision", "refused", "withheld", "no-room", "disk")
    assert asked.message.startswith(begins[kind in known])


def test_an_update_and_an_adapter_that_may_not_be_fetched(monkeypatch):
    """The one is of a model that is here, the other of none; each hint leads to its end."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelDownloadError, match="`org/tiny` cannot be updated") as caught:
        check_may_download("org/tiny", purpose="update")
    assert "is not on this machine" not in str(caught.value)
    for auto_pull in (True, False):
        with pytest.raises(ModelDownloadError, match="is not on this machine") as caught:
            check_may_download("me/tuned", auto_pull=auto_pull, purpose="adapter")
        assert "folder of an adapter" in caught.value.hint
        assert "car-vllm" not in caught.value.hint


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
    "folder": (
        "PermissionError: [Errno 13] Permission denied: '/Volumes/SSD/hub'",
        "cannot be written to: PermissionError: [Errno 13] Permission denied: '/Volumes/SSD/hub'",
    ),
    "dns": ("ConnectError: [Errno -2] Name or service not known", "cannot be reached"),
    "mac": ("ConnectError: [Errno 8] nodename nor servname provided", "cannot be reached"),
    "cut": ("peer closed connection without sending complete message body", "broke again"),
    "down": (
        "HfHubHTTPError: Server error '503 Service Unavailable'\ncheck your internet connection",
        "out of order",
    ),
    "python": ("Traceback\nValueError: strange", "ValueError: strange"),
    "silent": ("", "it said nothing about why"),
    "bytes": (b"\xff\xfe\x00", "it said nothing about why"),
}


@pytest.mark.parametrize(("text", "message"), LOGS.values(), ids=LOGS)
def test_a_log_without_a_verdict_is_read(tmp_path, text, message):
    """Binaries that are not run through the downloader are judged by what they print."""
    log = tmp_path / "download.log"
    log.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in diagnose_download("org/tiny", None, log).message


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
    assert "goes on where it was" in error.hint


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


def test_the_downloader_is_old_python():
    """The script that runs under the runtime's Python is valid for Python 3.10."""
    import ast

    import langchain_car_vllm.models.downloader as module

    ast.parse(Path(module.__file__).read_text(), feature_version=(3, 10))
