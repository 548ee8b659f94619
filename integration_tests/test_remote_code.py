"""What a stranger's model would run, on the real server and the real download."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cleanup import stop_servers
from fakes.hub import FakeHub, write_model

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import UntrustedCodeError
from langchain_car_vllm.models import find_snapshot
from langchain_car_vllm.models.download import download_command
from langchain_car_vllm.models.download_diagnosis import diagnose_download

REPOSITORY = "org/evil"
TRUST = ["--trust-remote-code"]


@pytest.fixture
def evil(smollm2: str, tmp_path: Path) -> Iterator[Path]:
    """A model whose `model_file` writes down the environment that it runs in."""
    folder = tmp_path / "evil"
    shutil.copytree(smollm2, folder, copy_function=os.link)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"model_file": "modeling.py"}))
    (folder / "modeling.py").write_text(
        "import json, os, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).write_text(json.dumps(dict(os.environ)))\n"
        "from mlx_lm.models.llama import Model, ModelArgs\n"
    )
    yield folder
    stop_servers()


def test_a_model_of_a_stranger_runs_nothing(
    evil: Path, tmp_path: Path, fast_cpu: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """Its code is refused; where the user trusts it by name it runs, and finds no secret."""
    for name in ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "ANTHROPIC_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "a secret of mine")
    monkeypatch.setenv("CAR_VLLM_MLX_API_KEY", "a secret of mine")
    settings = {"model": str(evil), "max_tokens": 4, "temperature": 0, "server_env": fast_cpu}
    with pytest.raises(UntrustedCodeError, match="model_file"):
        ChatVllmMlx(**settings).invoke("Hi")
    assert not (tmp_path / "ran").exists()
    assert ChatVllmMlx(**settings, server_args=TRUST).invoke("Hi").text
    assert "a secret of mine" not in (tmp_path / "ran").read_text()


@pytest.fixture
def hub(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """A hub that serves one repository with code in it."""
    origin = hub.repositories[REPOSITORY] = write_model(tmp_path / "origin")
    (origin / "modeling.py").write_text("raise SystemExit")
    return hub


def download(folder: Path, *, trust: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the download to its end."""
    binary = Path(os.environ["CAR_VLLM_MLX_BIN"])
    command = download_command(folder, binary, REPOSITORY, trust=trust)
    ended = subprocess.run(
        [command.program, *command.arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | command.environment,
    )
    (folder / "log").write_text(ended.stdout + ended.stderr)
    return ended


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"model_type": "llama", "model_file": "modeling.py"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["modeling.Evil", None]}}),
    ],
)
def test_no_weights_are_fetched_of_what_would_run_code(
    hub: FakeHub, tmp_path: Path, file: str, content: dict[str, object]
):
    """The download ends after the settings, and brings no code."""
    (hub.repositories[REPOSITORY] / file).write_text(json.dumps(content))
    ended = download(tmp_path)
    assert ended.returncode != 0
    assert isinstance(diagnose_download(REPOSITORY, None, tmp_path / "log"), UntrustedCodeError)
    assert hub.bytes_sent == 0
    assert not [path for _, path, _ in hub.requests if path.endswith(".py")]


def test_code_is_fetched_only_for_those_who_trust_it(hub: FakeHub, tmp_path: Path):
    """A repository with a script in it is whole without the script, until somebody trusts it."""
    (hub.repositories[REPOSITORY] / "original").mkdir()
    for name in ("original/model.safetensors", "consolidated.safetensors"):
        (hub.repositories[REPOSITORY] / name).write_bytes(bytes(1000))
    assert download(tmp_path).returncode == 0, (tmp_path / "log").read_text()
    snapshot = find_snapshot(REPOSITORY)
    assert snapshot is not None
    assert not list(snapshot.rglob("*.py"))
    assert [path.name for path in snapshot.rglob("*.safetensors")] == ["model.safetensors"]
    assert find_snapshot(REPOSITORY, trust=True) is None
    assert download(tmp_path, trust=True).returncode == 0
    assert (snapshot / "modeling.py").exists()


def test_weights_of_another_program_are_not_fetched(hub: FakeHub, tmp_path: Path):
    """A repository of GGUF files is named for what it is before anything is fetched."""
    origin = hub.repositories[REPOSITORY]
    (origin / "model.safetensors").rename(origin / "model.Q4_K_M.gguf")
    assert download(tmp_path).returncode != 0
    error = diagnose_download(REPOSITORY, None, tmp_path / "log")
    assert "GGUF" in error.message
    assert "MLX conversion" in (error.hint or "")
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


def test_a_part_that_somebody_else_wrote_is_not_believed(hub: FakeHub, tmp_path: Path):
    """A partial file with a hole in it is continued, found wrong and fetched anew."""
    origin = hub.repositories[REPOSITORY] / "model.safetensors"
    first = download(tmp_path)
    assert first.returncode == 0, first.stderr
    snapshot = find_snapshot(REPOSITORY)
    assert snapshot is not None
    blob = (snapshot / "model.safetensors").resolve()
    content = blob.read_bytes()
    (snapshot / "model.safetensors").unlink()
    blob.unlink()
    part = blob.with_name(f"{blob.name}.incomplete")
    for torn in (bytes(len(content) // 2), bytes(len(content)), content[:1000] + bytes(1000)):
        blob.unlink(missing_ok=True)
        (snapshot / "model.safetensors").unlink(missing_ok=True)
        part.write_bytes(torn)
        ended = download(tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert blob.read_bytes() == origin.read_bytes()


def test_pull_tells_what_a_repository_would_run(hub: FakeHub, tmp_path: Path):
    """`car-vllm pull` refuses with one sentence and a cure, and obeys who trusts it."""
    config = {"model_type": "llama", "model_file": "modeling.py"}
    (hub.repositories[REPOSITORY] / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", "from langchain_car_vllm.cli import main; main()", "pull"]
    ended = subprocess.run([*command, REPOSITORY], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "comes with its own code" in ended.stderr
    assert hub.bytes_sent == 0
    trusting = [*command, REPOSITORY, "--trust-remote-code"]
    ended = subprocess.run(trusting, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
