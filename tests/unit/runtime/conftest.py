import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import uv
from unit.runtime.process_control import end_tree

from langchain_car_vllm.runtime.host import current_host
from langchain_car_vllm.runtime.install_steps import Work
from langchain_car_vllm.runtime.reporter import Reporter

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


@pytest.fixture
def wheels(tmp_path):
    """A folder with one tiny wheel."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr(
            "tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return folder


@pytest.fixture
def install_wheel(wheels, home, monkeypatch):
    """Install the wheel as the runtime is: by hash, in `~/.car`, from another folder."""
    digest = hashlib.sha256(next(wheels.iterdir()).read_bytes()).hexdigest()
    root = home / ".car" / "visual-runtime"
    root.mkdir(parents=True)
    lock = wheels.parent / "requirements.lock"
    lock.write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
    monkeypatch.setenv("UV_CACHE_DIR", str(wheels.parent / "cache"))
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_OFFLINE", "1")
    here = wheels.parent / "project"
    here.mkdir()
    monkeypatch.chdir(here)

    def run():
        with Path(os.devnull).open("rb") as held:
            work = Work(root, Path(uv.find_uv_bin()), held.fileno(), current_host(), Reporter(None))
            work.run_uv(
                "venv", "venv", "--allow-existing", "--python", sys.executable, root, directory=root
            )
            work.run_uv(
                "pip-install",
                *("pip", "install", "--python", root / "bin" / "python", "--no-deps"),
                *("--require-hashes", "--requirement", lock),
                directory=root,
            )
        return [
            path for path in root.glob("lib/python*/site-packages/tiny.py") if not path.is_symlink()
        ]

    return run
