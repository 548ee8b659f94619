"""`car-vllm pull --update` with the real client of the Hub: only what changed, and never less."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uv
from fakes.hub import COMMIT, FakeHub, write_model
from fakes.socks_proxy import running_socks_proxy
from fakes.weights import weights_of

from langchain_car_vllm.models import find_snapshot
from langchain_car_vllm.runtime import interpreter_of

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

REPOSITORY = "org/tiny"
WEIGHTS = 4_000_000
NEWER, NEWEST = "1" * 40, "2" * 40
COMMAND = (sys.executable, "-c", "from langchain_car_vllm.cli import main; main()", "pull")


@pytest.fixture
def hub(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """A hub with one repository, of which the first commit is in the cache."""
    hub.repositories[REPOSITORY] = write_model(tmp_path / "origin", weights=WEIGHTS)
    assert pull().returncode == 0
    hub.bytes_sent = 0
    return hub


def pull(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [*COMMAND, REPOSITORY, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def with_package(name: str, root: Path) -> Path:
    """Return a `vllm-mlx` that sees one more package than the runtime, which stays as it is."""
    binary = Path(os.environ["CAR_VLLM_MLX_BIN"])
    interpreter = interpreter_of(binary)
    assert interpreter is not None
    tool, python = uv.find_uv_bin(), root / "bin" / "python"
    subprocess.run([tool, "venv", "--quiet", "--python", interpreter, root], check=True)
    subprocess.run([tool, "pip", "install", "--quiet", "--python", python, name], check=True)
    (site,) = root.glob("lib/python*/site-packages")
    packages = interpreter.parents[1] / site.relative_to(root)
    (site / "runtime.pth").write_text(f"{packages}\n")
    script = root / "bin" / "vllm-mlx"
    script.write_text(f"#!{python}\n" + binary.read_text().split("\n", 1)[1])
    script.chmod(0o755)
    return script


def commit(hub: FakeHub, name: str, **files: bytes) -> None:
    """Put files of new content under a new commit of the main branch."""
    for stem, content in files.items():
        suffix = "safetensors" if stem == "model" else "json"
        (hub.repositories[REPOSITORY] / f"{stem}.{suffix}").write_bytes(content)
    hub.revisions["main"] = name


def snapshot() -> Path:
    """Return the copy that is served."""
    found = find_snapshot(REPOSITORY)
    assert found is not None
    return found


def test_only_what_changed_is_fetched(hub: FakeHub):
    """A repaired template brings no weights along; new weights are fetched, and nothing twice."""
    template = json.dumps({"chat_template": "repaired"}).encode()
    commit(hub, NEWER, tokenizer_config=template)
    assert "is on this machine" in pull().stderr
    assert snapshot().name == COMMIT
    done = pull("--update")
    assert (done.returncode, done.stdout) == (0, f"{snapshot()}\n"), done.stderr
    assert "was updated" in done.stderr
    assert snapshot().name == NEWER
    assert (snapshot() / "tokenizer_config.json").read_bytes() == template
    assert hub.bytes_sent == 0
    assert "is up to date" in pull("--update").stderr
    weights = weights_of(WEIGHTS + 1000)
    commit(hub, NEWEST, model=weights)
    assert pull("--update").returncode == 0
    assert (snapshot() / "model.safetensors").read_bytes() == weights
    assert hub.bytes_sent == len(weights)
    assert "is up to date" in pull("--update").stderr
    assert hub.bytes_sent == len(weights)


def test_an_update_that_fails_leaves_what_was_there(hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    """Killed in the middle, refused, or without a network: the former copy is served still."""
    former = snapshot()
    commit(hub, NEWER, model=weights_of(WEIGHTS + 1000))
    hub.bytes_per_second = 1_000_000
    with subprocess.Popen([*COMMAND, REPOSITORY, "--update"]) as process:
        give_up_at = time.monotonic() + 60
        while hub.bytes_sent < WEIGHTS // 2:
            assert process.poll() is None
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        process.kill()
    assert snapshot() == former
    hub.bytes_per_second = None
    hub.failing_with = 503
    done = pull("--update")
    assert done.returncode == 1
    assert "the Hub is not working at the moment" in done.stderr
    assert snapshot() == former
    hub.failing_with = None
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = pull("--update")
    assert (done.returncode, "cannot be reached" in done.stderr) == (1, True), done.stderr
    assert snapshot() == former
    assert pull().returncode == 0
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.bytes_sent = 0
    assert pull("--update").returncode == 0
    assert snapshot().name == NEWER
    assert hub.bytes_sent < WEIGHTS


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks"])
def test_a_download_through_a_socks_proxy(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
):
    """With `socksio` beside it, as in the locked set, the Hub's client goes through the proxy."""
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(with_package("socksio", tmp_path / "runtime")))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "another"))
    with running_socks_proxy(int(hub.endpoint.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://{proxy.address}")
        done = pull()
    assert done.returncode == 0, done.stderr
    assert {host for host, _ in proxy.asked} == {"hub.example"}
