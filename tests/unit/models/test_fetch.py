import os
import subprocess
import sys

import pytest

from langchain_car_vllm.errors import ModelDownloadError
from langchain_car_vllm.models.fetch import fetch_model
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.runtime import VllmRuntime

DOWNLOADS = """
snapshot="$HF_HOME/hub/models--org--tiny/snapshots/abc"
mkdir -p "$snapshot" "$HF_HOME/hub/models--org--tiny/refs" "$HF_HOME/hub/models--org--tiny/blobs"
printf abc > "$HF_HOME/hub/models--org--tiny/refs/main"
printf xxxxx > "$HF_HOME/hub/models--org--tiny/blobs/weights.incomplete"
while [ -e "$GATE" ]; do sleep 0.01; done
for name in config.json tokenizer.json model.safetensors; do echo '{}' > "$snapshot/$name"; done
"""


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """A `vllm-mlx` that is no Python script and does what the test says."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    binary = tmp_path / "vllm-mlx"

    def write(script):
        binary.write_text(f"#!/bin/sh\n{script}\n")
        binary.chmod(0o755)
        return VllmRuntime(binary, None)

    return write


def test_a_model_is_fetched_with_progress(runtime, tmp_path):
    """The bytes are told while the download goes on, and the local copy is returned."""
    (tmp_path / "gate").touch()
    heard = []

    def hear(progress: Progress):
        heard.append(progress)
        if progress.done:
            (tmp_path / "gate").unlink(missing_ok=True)

    path = fetch_model(runtime(DOWNLOADS), "org/tiny", on_progress=hear)
    assert path == tmp_path / "hf" / "hub" / "models--org--tiny" / "snapshots" / "abc"
    assert any(progress.done == 5 for progress in heard)
    heard.clear()
    assert fetch_model(runtime("exit 1"), "org/tiny", on_progress=hear) == path
    assert heard == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'No space left on device' >&2; exit 1", "the disk is full"),
        ("kill -9 $$", "killed by signal 9"),
        ("exit 0", "it said nothing about why"),
    ],
)
def test_a_failed_fetch_is_explained(runtime, script, said):
    """A download that fails, dies or leaves nothing is an error that says so."""
    with pytest.raises(ModelDownloadError, match=said):
        fetch_model(runtime(script), "org/tiny", on_progress=lambda _progress: None)


def test_an_interrupted_fetch_ends_its_child(runtime, tmp_path):
    """Ctrl-C leaves no download behind, and what has arrived stays."""
    (tmp_path / "gate").touch()
    children = tmp_path / "pid"

    def interrupt(progress: Progress):
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_model(
            runtime(f"echo $$ > {children}\n{DOWNLOADS}"), "org/tiny", on_progress=interrupt
        )
    with pytest.raises(ProcessLookupError):
        os.kill(int(children.read_text()), 0)
    assert (tmp_path / "hf" / "hub" / "models--org--tiny" / "blobs" / "weights.incomplete").exists()


def test_the_command_line_pulls(runtime, monkeypatch):
    """`car-vllm pull` prints where the model is, and shows nothing else on standard output."""
    found = runtime(DOWNLOADS)
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(found.server))
    command = [sys.executable, "-c", "from langchain_car_vllm.cli import main; main()"]
    ended = subprocess.run(
        [*command, "pull", "org/tiny"], capture_output=True, text=True, check=False
    )
    assert ended.stdout.endswith("models--org--tiny/snapshots/abc\n"), ended.stderr
