"""Every test gets a home, a state folder and an environment of its own."""

import os
import signal
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from darwin_tcp import _everywhere, darwin_rules  # noqa: F401
from hypothesis import HealthCheck, settings

from langchain_car_vllm.support import user_warnings
from langchain_car_vllm.wire.transport import remote

_SLOW = [
    line
    for line in Path(__file__)
    .with_name("slow_variants.txt")
    .read_text(encoding="utf-8")
    .split("\n")
    if line and not line.startswith("#")
]
_FOREIGN = ("CAR_", "UV_", "VLLM_MLX_", "HF_", "OPENAI_", "LANGCHAIN_", "LANGSMITH_")

# A machine under load makes examples slowly; what is slow by itself shows in the durations.
settings.register_profile(
    "patient", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")

# A shell without job control starts what runs in the background with Ctrl-C ignored, and processes
# that a test starts would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave variants that take long to `make test-full`, and begin with what takes minutes."""
    for item in items:
        if any(fnmatch(item.nodeid.rpartition("/")[2], pattern) for pattern in _SLOW):
            item.add_marker(pytest.mark.full)
    # Begun last, the soak would have one worker work for two minutes and the others wait.
    items.sort(key=lambda item: "/soak/" not in item.nodeid)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HOME, with no variable of the caller's that could reach a test."""
    for name in list(os.environ):
        if name.startswith(_FOREIGN):
            monkeypatch.delenv(name)
    # A program that a test starts keeps its bytecode, as users' programs do.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Yield a folder that other users come to, which `tmp_path` is not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder).resolve()


@pytest.fixture(autouse=True)
def _forgotten_endpoints() -> None:
    """Another test's server may have had the port that this one's gets."""
    remote.forget()


@pytest.fixture(autouse=True)
def _untold_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told once per process is told anew in each test, in whatever order they run."""
    monkeypatch.setattr(user_warnings, "_told", set())
