"""A Mac's memory where Metal has not been asked yet, or not since an update of macOS."""

import stat
import sys
from pathlib import Path

import psutil
import pytest
from fakes.weights import write_sparse_weights
from faults.support import FAST, Background, Fake, ask, eventually

from langchain_car_vllm.errors import InsufficientMemoryError, ServerStoppedError
from langchain_car_vllm.server import lease, stop_server

_MAC = """
import platform
import psutil

platform.system = lambda: "Darwin"
whole = psutil.virtual_memory()
psutil.virtual_memory = lambda: whole._replace(total=24 * 2**30)
"""


@pytest.fixture
def mac(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A Mac of 24 GB whose Metal gives more than the rule that holds before it is asked."""
    rules = tmp_path / "mac"
    rules.mkdir()
    (rules / "sitecustomize.py").write_text(_MAC)
    supervisors = rules / "python"
    path = f'PYTHONPATH="{rules}:$PYTHONPATH"'
    supervisors.write_text(f'#!/bin/sh\nexport {path}\nexec {sys.executable} "$@"\n')
    supervisors.chmod(0o755)
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(supervisors))
    give_metal(fake, 18_800_000_000)
    write_sparse_weights(fake.model / "model.safetensors", 17_000_000_000)
    return fake


def give_metal(fake: Fake, figure: int) -> None:
    """Have the install's own Python find an MLX that answers."""
    environment = fake.binary.parents[1]
    real, python = Path(sys.executable).resolve(), fake.binary.with_name("python")
    python.symlink_to(real)
    (environment / "pyvenv.cfg").write_text(f"home = {real.parent}\n")
    fake.binary.write_text(f"#!{python}\n" + fake.binary.read_text().split("\n", 1)[1])
    fake.binary.chmod(fake.binary.stat().st_mode | stat.S_IXUSR)
    site = f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    mlx = environment / "lib" / site / "mlx"
    mlx.mkdir(parents=True)
    (mlx / "__init__.py").touch()
    (mlx / "core.py").write_text(
        f"def device_info(): return {{'max_recommended_working_set_size': {figure}}}\n"
    )


def test_metal_is_asked_before_a_model_is_refused(mac: Fake):
    """An update of macOS makes the figure that is kept void: the rule is no reason to refuse."""
    with lease(mac.spec(), policy=FAST) as held:
        assert ask(held.endpoint)


def test_what_metal_says_is_refused_with_the_numbers(mac: Fake):
    """Nobody asked before, and the refusal speaks of the figure already."""
    write_sparse_weights(mac.model / "model.safetensors", 18_700_000_000)
    with pytest.raises(InsufficientMemoryError, match=r"together may take 18\.8 GB"):
        lease(mac.spec(), policy=FAST).__enter__()
    assert mac.starts() == []


def test_a_stop_does_not_wait_for_metal(mac: Fake):
    """It may take long to answer where the GPU hangs; who asks it ends with the start."""
    core = next(mac.root.glob("env/lib/*/site-packages/mlx/core.py"))
    asked = mac.root / "asked"
    core.write_text(f"import time\nopen({str(asked)!r}, 'w').close()\ntime.sleep(600)\n")
    call = Background(lambda: lease(mac.spec(), policy=FAST).__enter__())
    eventually(asked.exists, "the question")
    assert stop_server(mac.directory(), policy=FAST)
    with pytest.raises(ServerStoppedError):
        call.result()


@pytest.mark.parametrize(("written", "meant"), [("AUTO", "auto"), ("", "auto"), ("1", "1")])
def test_the_server_wires_as_its_supervisor_counts(fake: Fake, written: str, meant: str):
    """Its own mend knows the plain words alone, and wires at any other."""
    given = {"server_env": (("CAR_VLLM_MLX_WIRED", written),)}
    with lease(fake.spec(**given), policy=FAST):
        server = fake.state(**given).server
        assert server
        assert psutil.Process(server.pid).environ()["CAR_VLLM_MLX_WIRED"] == meant
