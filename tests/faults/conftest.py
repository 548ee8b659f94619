"""A fake installation on the PATH, a tiny model, and proof that nothing is left behind."""

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from langchain_car_vllm.server import Policy, ServerSpec, directory_of

FAKE = Path(__file__).parents[1] / "fakes" / "vllm-mlx"

FAST = Policy(
    idle_tick=0.02,
    start_tick=0.01,
    client_tick=0.01,
    load_stall=3.0,
    stop_grace=1.0,
    save_stall=1.0,
    stop_patience=1.0,
    backoff=(0.02, 0.04, 0.06, 0.08, 0.1),
    crash_window=30.0,
)


class Fake:
    """The fake installation of one test.

    Attributes:
        binary: Its `vllm-mlx`.
        model: A directory that looks like a model.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.binary = root / "env" / "bin" / "vllm-mlx"
        self.binary.parent.mkdir(parents=True)
        script = FAKE.read_text().split("\n", 1)[1]
        self.binary.write_text(f"#!{sys.executable}\n{script}")
        self.binary.chmod(self.binary.stat().st_mode | stat.S_IXUSR)
        site = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        metadata = root / "env" / site / "vllm_mlx-0.6.0.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text("Metadata-Version: 2.1\nName: vllm-mlx\nVersion: 0.6.0\n")
        self.model = root / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text(
            json.dumps({"model_type": "llama", "max_position_embeddings": 2048})
        )
        (self.model / "tokenizer.json").write_text("{}")
        (self.model / "model.safetensors").write_bytes(b"\0" * 64)
        self._starts = root / "starts"
        self.switch()

    def switch(self, **faults: object) -> None:
        """Set the fault switches of the next start."""
        path = self.root / "faults.json"
        path.write_text(json.dumps({"starts": str(self._starts), **faults}))
        os.environ["FAKE_VLLM"] = str(path)

    def starts(self) -> list[int]:
        """Return the process ids of all starts so far."""
        return [int(n) for n in self._starts.read_text().split()] if self._starts.exists() else []

    def spec(self, **changes: object) -> ServerSpec:
        """Return a spec of the fake model."""
        fields = {"source": str(self.model), "name": str(self.model), "keep_alive": 60.0}
        return ServerSpec(**{**fields, **changes})

    def open_gate(self, name: str) -> None:
        """Let whatever waits for the gate go on."""
        Path(self.gate(name)).touch()

    def gate(self, name: str) -> str:
        """Return the path of a gate, closed until it is opened."""
        return str(self.root / f"gate-{name}")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """The fake installation; afterwards none of its processes may live."""
    monkeypatch.setenv("FAKE_VLLM", "")
    installation = Fake(tmp_path / "fake")
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(installation.binary))
    yield installation
    from langchain_car_vllm.server import running_servers, stop_server

    for directory, _ in running_servers():
        stop_server(directory, policy=FAST)
    left = [p for p in processes_of(tmp_path)]
    for process in left:
        process.kill()
    assert not left, f"left behind: {left}"


def processes_of(root: Path) -> list[psutil.Process]:
    """Return the live processes that have a path below `root` on their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and any(str(root) in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


__all__ = ["FAST", "Fake", "directory_of", "processes_of"]
