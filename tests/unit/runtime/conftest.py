import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from unit.runtime.process_control import end_tree

FAKE_UV = Path(__file__).parents[2] / "fakes" / "uv"


@pytest.fixture(autouse=True)
def bare_path(monkeypatch):
    """A PATH on which neither uv nor vllm-mlx is."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


class FakeUv:
    """The fake uv as an executable, and what it was asked."""

    def __init__(self, folder, monkeypatch):
        self.binary = folder / "uv"
        self._log = folder / "uv.log"
        self._monkeypatch = monkeypatch
        self.binary.write_text(f"#!{sys.executable}\n{FAKE_UV.read_text()}")
        self.binary.chmod(0o755)
        monkeypatch.setenv("CAR_UV", str(self.binary))
        monkeypatch.setenv("FAKE_UV_LOG", str(self._log))

    def set(self, **variables):
        for name, value in variables.items():
            variable = f"FAKE_UV_{name.upper()}"
            if value is None:
                self._monkeypatch.delenv(variable, raising=False)
            else:
                self._monkeypatch.setenv(variable, value)

    @property
    def calls(self):
        """The commands it was given, without the questions for its version."""
        if not self._log.exists():
            return []
        calls = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [call for call in calls if call != ["--version"]]

    @property
    def commands(self):
        return [call[0] for call in self.calls]

    def paused_at(self, point):
        return Path(f"{self._log}.{point}")


@pytest.fixture
def fake_uv(tmp_path, monkeypatch):
    folder = tmp_path / "uv"
    folder.mkdir()
    return FakeUv(folder, monkeypatch)


@pytest.fixture
def managed(home):
    return home / ".car" / "visual-runtime"


@pytest.fixture
def spawn():
    """Run Python code in other processes, which are all ended with the test."""
    running = []

    def start(code):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ.copy(),
        )
        running.append(process)
        return process

    yield start
    for process in running:
        end_tree(process)


@pytest.fixture
def write_binary(tmp_path):
    """Make an environment with a `vllm-mlx` of some version, and return the binary."""

    def write(root, version="0.6.0", *, first_lines=None, metadata=True, python="python3.11"):
        site = root / "lib" / "python3.11" / "site-packages"
        site.mkdir(parents=True)
        (root / "bin").mkdir()
        interpreter = root / "bin" / "python"
        base = tmp_path / "base" / "bin" / python
        base.parent.mkdir(parents=True, exist_ok=True)
        if not base.exists():  # it imports whatever it is asked to
            base.write_text("#!/bin/sh\n")
            base.chmod(0o755)
        interpreter.symlink_to(base)
        if version is not None:
            folder = site / f"vllm_mlx-{version}.dist-info"
            folder.mkdir()
            if metadata:
                (folder / "METADATA").write_text(f"Name: vllm-mlx\nVersion: {version}\n\nText\n")
        binary = root / "bin" / "vllm-mlx"
        head = first_lines or f"#!{interpreter}"
        binary.write_text(f"{head}\nfrom vllm_mlx.cli import main\nmain()\n")
        binary.chmod(0o755)
        return binary

    return write
