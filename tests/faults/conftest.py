"""The fault suite: every test proves at its end that no process of its own is left."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.support import FAST, Fake, eventually, processes_of

from langchain_car_vllm.server import running_servers, stop_server


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """The fake installation; afterwards none of its processes may live."""
    monkeypatch.setenv("FAKE_VLLM", "")
    installation = Fake(tmp_path / "fake")
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(installation.binary))
    yield installation

    def is_quiet() -> bool:
        # A start that a caller gave up goes on, so that its supervisor may come later.
        for directory, _ in running_servers():
            stop_server(directory, policy=FAST)
        return not processes_of(tmp_path)

    try:
        eventually(is_quiet, "the last process to end", patience=5)
    finally:
        for process in processes_of(tmp_path):
            process.kill()
