"""`pull`: downloads."""

import os
import stat
import subprocess
from pathlib import Path

import psutil
import pytest
from fakes.hub import running_hub
from faults.support import PATIENCE, Fake, eventually
from unit.cli.conftest import Cli, command, interrupt
from unit.cli.model_folders import COMMIT, download


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def install(fake: Fake, script: str) -> None:
    """Put a shell script in the place of `vllm-mlx`."""
    fake.binary.write_text(f"#!/bin/sh\n{script}\n")
    fake.binary.chmod(fake.binary.stat().st_mode | stat.S_IXUSR)


def test_pull_of_what_is_there(cli: Cli, cache: Path):
    """Nothing is installed or fetched, the directory is printed."""
    snapshot = download(cache, "org/tiny")
    done = cli("pull", "org/tiny", CAR_VLLM_MLX_AUTO_INSTALL="0")
    assert (done.returncode, done.stdout) == (0, f"{snapshot}\n")


def test_pull_installs_nothing_where_that_is_forbidden(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whoever installs by themselves is told the command."""
    monkeypatch.delenv("CAR_VLLM_MLX_BIN", raising=False)
    done = cli("pull", "org/tiny", CAR_VLLM_MLX_AUTO_INSTALL="0", PATH="")
    assert done.returncode == 1
    assert "CAR_VLLM_MLX_AUTO_INSTALL=0" in done.stderr
    assert not (Path(os.environ["HOME"]) / ".car/visual-runtime").exists()


def test_pull_of_what_the_hub_does_not_give(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch, socket_enabled: None
):
    """A misspelt name is told at once: nothing is installed for it."""
    monkeypatch.delenv("CAR_VLLM_MLX_BIN", raising=False)
    with running_hub() as hub:
        done = cli("pull", "mlx-community/Qwen3-4B-4bt", HF_ENDPOINT=hub.endpoint, PATH="")
    assert done.returncode == 1
    assert "the Hub has no such repository" in done.stderr
    assert "did you mean `mlx-community/Qwen3-4B-4bit`" in done.stderr
    assert not (Path(os.environ["HOME"]) / ".car/visual-runtime").exists()


def test_pull_downloads(cli: Cli, cache: Path, fake: Fake, tmp_path: Path):
    """The runtime's own download is run, and the directory that it filled is printed."""
    source = download(tmp_path / "elsewhere", "org/tiny").parents[1]
    install(fake, f'echo "$@"; mkdir -p {cache}; cp -R {source} {cache}/')
    done = cli("pull", "org/tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{cache}/models--org--tiny/snapshots/{COMMIT}\n"
    assert "download" in done.stderr
    (log,) = Path(os.environ["HOME"]).glob(".car/run/pull/*/download.log")
    assert log.read_text() == "download org/tiny\n"


def test_pull_fetches_what_is_newer(cli: Cli, cache: Path, fake: Fake):
    """With `--update` the Hub is asked although a copy is here, and it is said what came of it."""
    snapshot = download(cache, "org/tiny")
    install(fake, 'echo "$@"')
    done = cli("pull", "org/tiny", "--update")
    assert (done.returncode, done.stdout) == (0, f"{snapshot}\n"), done.stderr
    assert "`org/tiny` is up to date" in done.stderr
    newer = snapshot.with_name("f" * 40)
    ref = snapshot.parents[1] / "refs" / "main"
    install(fake, f"cp -R {snapshot} {newer}; printf {'f' * 40} > {ref}")
    done = cli("pull", "org/tiny", "--update")
    assert (done.returncode, done.stdout) == (0, f"{newer}\n"), done.stderr
    assert "was updated" in done.stderr
    done = cli("pull", "org/tiny", "--update", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "`org/tiny` cannot be updated: HF_HUB_OFFLINE" in done.stderr


def test_pull_updates_no_directory(cli: Cli, fake: Fake):
    """A folder has no newer version that could be fetched."""
    done = cli("pull", str(fake.model), "--update")
    assert done.returncode == 1
    assert "is a directory" in done.stderr


def test_pull_explains_a_failure(cli: Cli, fake: Fake):
    """What the Hub refused is told with what to do about it."""
    install(fake, 'echo "Cannot access gated repo for url"; exit 1')
    done = cli("pull", "org/secret")
    assert (done.returncode, done.stdout) == (1, "")
    assert "it is a gated repository and no HF_TOKEN is set" in done.stderr
    assert "hint: accept the licence" in done.stderr


def test_several_are_pulled_and_all_are_ids(cli: Cli, cache: Path, fake: Fake, tmp_path: Path):
    """What is no id ends it before the first download; else each directory is printed."""
    sources = [download(tmp_path / "elsewhere", name).parents[1] for name in ("o/one", "o/two")]
    install(fake, f"mkdir -p {cache}; cp -R {sources[0]} {sources[1]} {cache}/")
    assert cli("pull", "o/one", "nothing").returncode == 1
    assert not (cache / "models--o--one").exists()
    done = cli("pull", "o/one", "o/two")
    assert done.returncode == 0, done.stderr
    assert [line.split("models--")[1][:6] for line in done.stdout.splitlines()] == [
        "o--one",
        "o--two",
    ]


def test_pull_of_something_else(cli: Cli, fake: Fake):
    """A repository without a model is not a success."""
    install(fake, "exit 0")
    done = cli("pull", "org/dataset")
    assert done.returncode == 1
    assert "has no model" in done.stderr


def test_pull_that_stands_still_is_given_up(cli: Cli, fake: Fake):
    """No byte, no line and no CPU time for as long as the limit says: an error."""
    install(fake, "exec sleep 600")
    done = cli("pull", "org/slow", CAR_VLLM_MLX_DOWNLOAD_STALL="0.5")
    assert done.returncode == 1
    assert "made no progress for 0.5 s" in done.stderr


def test_a_relative_folder_of_the_hub_is_the_users(
    cli: Cli, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The child runs elsewhere and still fills the folder that the user meant."""
    source = download(tmp_path / "elsewhere", "org/tiny").parents[1]
    install(fake, f'mkdir -p "$HF_HOME/hub"; cp -R {source} "$HF_HOME/hub/"')
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    done = cli("pull", "org/tiny", HF_HOME="./hf")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / done.stdout.strip() / "config.json").is_file()


def test_a_second_pull_waits_for_the_first(cli: Cli, cache: Path, fake: Fake, tmp_path: Path):
    """It downloads nothing itself and prints the same directory."""
    source = download(tmp_path / "elsewhere", "org/tiny").parents[1]
    started, gate, count = tmp_path / "started", tmp_path / "gate", tmp_path / "count"
    install(
        fake,
        f"echo x >> {count}; touch {started}; while [ ! -e {gate} ]; do sleep 0.05; done; "
        f"mkdir -p {cache}; cp -R {source} {cache}/",
    )
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command("pull", "org/tiny"), **output)
    try:
        eventually(started.exists, "the download")
        second = subprocess.Popen(command("pull", "org/tiny"), **output)
        try:
            assert second.stderr is not None
            assert any("downloading org/tiny" in line for line in second.stderr)
            gate.touch()
            done = [pulling.communicate(timeout=PATIENCE)[0] for pulling in (first, second)]
        finally:
            second.kill()
    finally:
        first.kill()
        first.wait()
    assert done == [f"{cache}/models--org--tiny/snapshots/{COMMIT}\n"] * 2
    assert count.read_text() == "x\n"


def test_ctrl_c_ends_the_download(fake: Fake, tmp_path: Path):
    """The child ends with the command."""
    started = tmp_path / "pid"
    install(fake, f"echo $$ > {started}.new; mv {started}.new {started}; exec sleep 600")
    pulling = subprocess.Popen(command("pull", "org/slow"))
    try:
        eventually(started.exists, "the download")
        assert interrupt(pulling) == 130
    finally:
        pulling.kill()
        pulling.wait()
    assert not psutil.pid_exists(int(started.read_text()))
