"""The download of a model: whether it may be, what is run, and how far it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from langchain_car_vllm.errors import ModelDownloadError
from langchain_car_vllm.models.download import (
    check_may_download,
    download_command,
    measure_download,
)
from langchain_car_vllm.models.download_diagnosis import (
    diagnose_download,
)
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
    with pytest.raises(
        ModelDownloadError, match="cannot be listed: the disk `Models` is not connected"
    ):
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


def test_the_downloader_is_old_python():
    """The script that runs under the runtime's Python is valid for Python 3.10."""
    import ast

    import langchain_car_vllm.models.downloader as module

    ast.parse(Path(module.__file__).read_text(), feature_version=(3, 10))
