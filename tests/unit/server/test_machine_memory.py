"""The memory of a container bounds what models may take there."""

import platform
from pathlib import Path

import psutil
import pytest

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.runtime.metal import known_working_set
from langchain_car_vllm.runtime.metal_question import learn_working_set
from langchain_car_vllm.server import machine_memory
from langchain_car_vllm.server.machine_memory import container_limit
from langchain_car_vllm.server.memory import budget_bytes

V2 = "0::/docker/abc\n"
V1 = "9:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        (V2, {"docker/abc/memory.max": "734003200\n", "memory.max": "max"}, 734003200),
        (V2, {"docker/abc/memory.max": "max", "docker/memory.max": "5000"}, 5000),
        (V2, {"docker/abc/memory.max": "9000", "docker/memory.max": "5000"}, 5000),
        (V2, {"memory.max": "7000"}, 7000),  # a container that sees its own group as the root
        (V2, {"docker/abc/memory.max": "max\n"}, None),
        (V2, {"docker/abc/memory.max": "9000", "docker/abc/memory.high": "8000"}, 8000),
        (V2, {"docker/abc/memory.max": "max", "docker/memory.high": "max"}, None),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": "4000\n"}, 4000),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        (V1 + V2, {"memory/memory.limit_in_bytes": "6000", "memory.max": "5000"}, 5000),
        (V2, {"memory.max": "many"}, None),
        (V2, {"memory.max": "0"}, None),
        ("0::/../../other\n", {"memory.max": "7000"}, 7000),
        ("nonsense\n::\n", {"memory.max": "7000"}, None),
        ("0::/größe\n", {"größe/memory.max": "7000"}, 7000),
        (None, {}, None),
    ],
)
def test_limit_of_a_container(
    tmp_path: Path, membership: str | None, files: dict[str, str], limit: int | None
):
    """Both versions of control groups, seen from inside and outside of a container."""
    if membership is not None:
        (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert container_limit(tmp_path / "cgroup", tmp_path / "groups") == limit


def test_budget_is_a_share_of_the_containers_memory(monkeypatch: pytest.MonkeyPatch):
    """A container of 700 MB does not get models of three quarters of the machine."""
    monkeypatch.delenv("CAR_VLLM_MLX_MEMORY_GB", raising=False)
    monkeypatch.setattr(machine_memory, "container_limit", lambda: 700_000_000)
    assert budget_bytes() == 525_000_000
    monkeypatch.setattr(machine_memory, "container_limit", lambda: 1 << 59)
    assert budget_bytes() <= psutil.virtual_memory().total * 0.75
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "1e300")
    assert budget_bytes() == 1 << 60


@pytest.mark.parametrize("kind", [PermissionError, RuntimeError, ValueError])
def test_a_sandbox_that_does_not_tell_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
):
    """The user can say it; nothing raw comes through before that, whatever `psutil` makes of it."""

    def refused() -> None:
        raise kind(1, "Operation not permitted")

    monkeypatch.setattr(psutil, "virtual_memory", refused)
    with pytest.raises(ConfigurationError, match="Operation not permitted") as caught:
        budget_bytes()
    assert "CAR_VLLM_MLX_MEMORY_GB" in (caught.value.hint or "")
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "8")
    assert budget_bytes() == 8_000_000_000
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    learn_working_set(Path("/nowhere/vllm-mlx"))
    assert known_working_set() is None
