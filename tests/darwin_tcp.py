"""The switch for Darwin's rules: this process, the supervisors and clients that it starts."""

import os
import socket
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

RULES = Path(__file__).parent / "fakes" / "darwin"
SWITCH = "DARWIN_RULES"


def impose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the rules hold until the end of the test; returns where swallowed connects are noted."""
    folder.mkdir()
    notes = folder / "swallowed"
    notes.touch()
    monkeypatch.setenv("DARWIN_SWALLOWED", str(notes))
    monkeypatch.setenv("PYTHONPATH", str(RULES))
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(_python(folder)))
    for name, under_the_rules in _connects().items():
        monkeypatch.setattr(socket.socket, name, under_the_rules)
    return notes


@cache
def _connects() -> dict[str, Callable[..., object]]:
    """Load the rules once; its black holes stay open for the process."""
    plain = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex")}
    spec = spec_from_file_location("darwin_rules", RULES / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))
    imposed = {name: getattr(socket.socket, name) for name in plain}
    for name, connect in plain.items():
        setattr(socket.socket, name, connect)
    return imposed


def _python(folder: Path) -> Path:
    """Return a Python for supervisors, whose path the package sets anew."""
    python = folder / "python"
    path = f'PYTHONPATH="{RULES}:$PYTHONPATH"'
    python.write_text(f'#!/bin/sh\nexport {path}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture
def darwin_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Darwin's rules hold; yields the file that notes the connects that nobody answered."""
    return impose(tmp_path / "darwin", monkeypatch)


@pytest.fixture(autouse=True)
def _everywhere(
    request: pytest.FixtureRequest,
    home: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With DARWIN_RULES=1 in the environment of the suite they hold in every test."""
    if os.environ.get(SWITCH) and "darwin_rules" not in request.fixturenames:
        impose(tmp_path_factory.mktemp("darwin") / "rules", monkeypatch)
