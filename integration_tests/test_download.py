"""The real `vllm-mlx download` against a hub on loopback: interrupted, refused, served."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cleanup import stop_servers
from fakes.hub import FakeHub, write_model

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.models import find_snapshot
from langchain_car_vllm.models.download import download_command, measure_download
from langchain_car_vllm.models.download_diagnosis import diagnose_download

REPOSITORY = "mlx-community/Qwen3-4B-4bt"
WEIGHTS = 8_000_000
MIB = 1024 * 1024


@pytest.fixture
def hub(hub: FakeHub, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub that serves one small repository."""
    hub.repositories[REPOSITORY] = write_model(tmp_path / "origin", weights=WEIGHTS)
    yield hub
    shutil.rmtree(tmp_path)


class Download:
    """One run of the download child, watched as the supervisor watches it."""

    def __init__(self, folder: Path, source: str, revision: str | None = None) -> None:
        binary = Path(os.environ["CAR_VLLM_MLX_BIN"])
        command = download_command(folder, binary, source, revision)
        self._asked = (source, revision)
        self.log = folder / "download.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [command.program, *command.arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | command.environment,
            )

    def wait(self, until: Callable[[int], bool] = lambda _done: False) -> list[int]:
        """Return what was measured until the end, or until a condition on it; fails after 60 s."""
        seen: list[int] = []
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            done, _ = measure_download(*self._asked)
            if not seen or done != seen[-1]:
                seen.append(done)
            if until(done):
                return seen
            time.sleep(0.01)
        self.process.wait(1)
        return seen

    def explain(self) -> str:
        """Return the diagnosis of a failed run."""
        assert self.process.returncode != 0, self.log.read_text()
        return str(diagnose_download(*self._asked, self.log, self.process.returncode))


def test_a_killed_download_goes_on_where_it_was(hub: FakeHub, tmp_path: Path):
    """After a SIGKILL in the middle only the missing bytes are fetched, and the copy is whole."""
    hub.bytes_per_second = 6_000_000
    first = Download(tmp_path, REPOSITORY)
    first.wait(until=lambda done: done > WEIGHTS // 2)
    first.process.kill()
    first.process.wait()
    assert find_snapshot(REPOSITORY) is None
    done, total = measure_download(REPOSITORY)
    assert WEIGHTS // 2 < done < WEIGHTS
    assert total is not None
    hub.bytes_sent, hub.bytes_per_second = 0, None
    second = Download(tmp_path, REPOSITORY)
    second.wait()
    assert second.process.returncode == 0, second.log.read_text()
    assert hub.bytes_sent <= total - done + MIB
    snapshot = find_snapshot(REPOSITORY)
    assert snapshot is not None
    origin = hub.repositories[REPOSITORY] / "model.safetensors"
    assert (snapshot / "model.safetensors").read_bytes() == origin.read_bytes()
    assert measure_download(REPOSITORY) == (total, total)


@pytest.mark.full
def test_progress_is_counted_in_bytes(hub: FakeHub, tmp_path: Path):
    """What is measured grows in many steps from nothing to everything."""
    hub.bytes_per_second = 8_000_000
    download = Download(tmp_path, REPOSITORY)
    seen = download.wait()
    assert download.process.returncode == 0
    assert seen == sorted(seen)
    assert len(seen) >= WEIGHTS // MIB


@pytest.mark.full
def test_a_connection_that_breaks_is_continued(hub: FakeHub, tmp_path: Path):
    """A connection that breaks every few megabytes only costs new requests."""
    hub.cut_after = 3_000_000
    download = Download(tmp_path, REPOSITORY)
    download.wait()
    assert download.process.returncode == 0, download.log.read_text()
    assert find_snapshot(REPOSITORY) is not None
    assert hub.bytes_sent < WEIGHTS + 3 * MIB


@pytest.mark.full
def test_a_complete_model_is_fetched_once(hub: FakeHub, tmp_path: Path):
    """With a complete copy in the cache no file is fetched again."""
    Download(tmp_path, REPOSITORY).wait()
    hub.bytes_sent = 0
    download = Download(tmp_path, REPOSITORY)
    download.wait()
    assert download.process.returncode == 0
    assert hub.bytes_sent == 0


@pytest.mark.full
def test_a_multimodal_model_is_fetched_whole(hub: FakeHub, tmp_path: Path):
    """Weights beside the text model are fetched too, where only `config.json` tells of them."""
    origin = hub.repositories[REPOSITORY]
    (origin / "config.json").write_text(json.dumps({"model_type": "x", "vision_config": {}}))
    (origin / "vision.safetensors").write_bytes(b"x" * 1000)
    download = Download(tmp_path, REPOSITORY)
    download.wait()
    assert download.process.returncode == 0, download.log.read_text()
    snapshot = find_snapshot(REPOSITORY)
    assert snapshot is not None
    assert (snapshot / "vision.safetensors").stat().st_size == 1000


@pytest.mark.full
@pytest.mark.parametrize("revision", ["v1", "f" * 40])
def test_a_revision_is_respected(hub: FakeHub, tmp_path: Path, revision: str):
    """A tag or a commit is fetched instead of the default branch."""
    hub.revisions["v1"] = "f" * 40
    download = Download(tmp_path, REPOSITORY, revision)
    download.wait()
    assert download.process.returncode == 0, download.log.read_text()
    snapshot = find_snapshot(REPOSITORY, revision)
    assert snapshot is not None
    assert snapshot.name == "f" * 40
    assert find_snapshot(REPOSITORY) is None


def gate(hub: FakeHub) -> None:
    """Ask for a token that is not there."""
    hub.token, hub.gated = "secret", True


def gate_with_token(hub: FakeHub) -> None:
    """Refuse a good token whose account has not accepted the licence."""
    hub.token, hub.gated = "mine", True


def lose(hub: FakeHub) -> None:
    """Know no such repository."""
    hub.repositories.clear()


def promise_too_much(hub: FakeHub) -> None:
    """List weights that no disk holds."""
    hub.wrong_size = 10**15


REFUSALS = {
    "gated": (gate, None, ("gated repository and no HF_TOKEN", "accept the licence")),
    "licence": (gate_with_token, None, ("not been accepted", "accept the licence")),
    "wrong-name": (lose, None, ("no such repository", "`mlx-community/Qwen3-4B-4bit`")),
    "wrong-revision": (lambda _hub: None, "v9", ("no revision `v9`", "leave `revision` out")),
    "disk": (promise_too_much, None, ("needs 1000000", "HF_HOME")),
}


@pytest.mark.parametrize(("fault", "revision", "said"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_work_ends_at_once(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fault: Callable[[FakeHub], None],
    revision: str | None,
    said: tuple[str, ...],
):
    """What no repetition cures is told after one try, with cause and cure, and fetches nothing."""
    fault(hub)
    if hub.token == "mine":
        monkeypatch.setenv("HF_TOKEN", "mine")
    download = Download(tmp_path, REPOSITORY, revision)
    download.wait()
    explanation = download.explain()
    for part in said:
        assert part in explanation
    assert hub.bytes_sent == 0
    assert "attempt 1 failed" not in download.log.read_text()


@pytest.mark.full
def test_a_token_opens_a_private_repository(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`HF_TOKEN` is sent."""
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    download = Download(tmp_path, REPOSITORY)
    download.wait()
    assert download.process.returncode == 0, download.log.read_text()


@pytest.mark.full
@pytest.mark.parametrize(
    ("faults", "said"),
    [({"failing_with": 503}, "not working at the moment"), ({"wrong_size": 5000}, "kept breaking")],
)
def test_a_hub_that_is_out_of_order(
    hub: FakeHub, tmp_path: Path, faults: dict[str, int], said: str
):
    """What may pass is tried again, and then told."""
    for name, value in faults.items():
        setattr(hub, name, value)
    download = Download(tmp_path, REPOSITORY)
    download.wait()
    assert said in download.explain()
    assert find_snapshot(REPOSITORY) is None


@pytest.mark.full
def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hub that cannot be reached is called that."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    download = Download(tmp_path, REPOSITORY)
    download.wait()
    assert "cannot be reached" in download.explain()


@pytest.mark.full
def test_an_interrupted_model_is_continued_and_served(
    hub: FakeHub, tmp_path: Path, smollm2: str, fast_cpu: dict[str, str]
):
    """A real model that is fetched in two goes answers."""
    source = "test/SmolLM2-135M-Instruct"
    hub.repositories[source] = Path(smollm2)
    hub.bytes_per_second = 150_000_000
    first = Download(tmp_path, source)
    first.wait(until=lambda done: done > 100_000_000)
    first.process.kill()
    first.process.wait()
    hub.bytes_per_second = None
    second = Download(tmp_path, source)
    second.wait()
    assert second.process.returncode == 0, second.log.read_text()
    chat = ChatVllmMlx(model=source, temperature=0, max_tokens=8, server_env=fast_cpu)
    assert "Paris" in chat.invoke("What is the capital of France?").text
    stop_servers()


@pytest.mark.full
def test_pull_fetches_in_the_foreground(hub: FakeHub, tmp_path: Path):
    """`car-vllm pull` downloads, prints where the model is, and tells a failure in one sentence."""
    command = [sys.executable, "-c", "from langchain_car_vllm.cli import main; main()", "pull"]
    ended = subprocess.run([*command, REPOSITORY], capture_output=True, text=True, check=False)
    assert ended.stdout == f"{find_snapshot(REPOSITORY)}\n", ended.stderr
    ended = subprocess.run([*command, "org/none"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "error: `org/none` cannot be downloaded: the Hub has no such" in ended.stderr
