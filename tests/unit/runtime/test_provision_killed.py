"""Installations that are killed, cancelled, repeated or run at the same time."""

import json

import psutil
import pytest
from unit.runtime.process_control import end_tree, wait_until
from unit.runtime.provisioning import ENSURE, MAC, make_foreign

from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime import ensure_runtime, resolve_existing
from langchain_car_vllm.runtime.marker import Marker, read_marker
from langchain_car_vllm.runtime.provision import provision


def test_a_failed_install_is_tried_again(fake_uv, managed):
    """After a failure the next call goes over it again, whatever was left behind."""
    fake_uv.set(fail="pip")
    with pytest.raises(ProvisionError):
        ensure_runtime()
    fake_uv.set(fail=None)
    assert ensure_runtime().version == "0.6.0"
    assert "--reinstall" in fake_uv.calls[-1]
    assert read_marker(managed).state == "complete"


@pytest.mark.parametrize("point", ["pip-begin", "pip-half", "pip-end"])
def test_an_install_into_cars_environment_is_killed(fake_uv, managed, spawn, point):
    """Killed while it adds to CAR's environment, it is mended, and CAR's packages are left."""
    site = make_foreign(managed, fake_uv, version=None)
    fake_uv.set(pause=point)
    victim = spawn(ENSURE)
    wait_until(fake_uv.paused_at(point).exists, victim)
    end_tree(victim)
    assert resolve_existing() is None
    fake_uv.set(pause=None)
    assert ensure_runtime().version == "0.6.0"
    assert read_marker(managed) == Marker("complete", False, "vllm-mlx>=0.6,<0.7 mlx[cpu]", "0.6.0")
    assert (site / "car_speech" / "__init__.py").exists()
    assert "--reinstall" not in fake_uv.calls[-1]


def test_an_environment_for_intel_that_was_left_behind_is_replaced(fake_uv, managed, spawn):
    """Killed after the Intel Python was made and before the right one, it goes on."""
    fake_uv.set(mac="1", pause="venv-end")
    code = """
from langchain_car_vllm.runtime.host import Host
from langchain_car_vllm.runtime.provision import provision
provision(host=Host("darwin", "arm64", (14, 0)))
"""
    victim = spawn(code)
    wait_until(fake_uv.paused_at("venv-end").exists, victim)
    end_tree(victim)
    fake_uv.set(pause=None)
    assert provision(host=MAC) == managed / "bin" / "vllm-mlx"


POINTS = ["venv-begin", "venv-half", "venv-end", "pip-begin", "pip-half", "pip-end"]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_step(fake_uv, managed, spawn, point):
    """Wherever provisioner and uv are killed, nothing half-done is used, and it is mended."""
    fake_uv.set(pause=point)
    victim = spawn(ENSURE)
    wait_until(fake_uv.paused_at(point).exists, victim)
    end_tree(victim)
    assert resolve_existing() is None
    fake_uv.set(pause=None)
    assert ensure_runtime().version == "0.6.0"
    assert read_marker(managed).state == "complete"


@pytest.mark.parametrize("point", ["venv-half", "pip-half"])
def test_a_uv_that_outlives_its_provisioner_keeps_the_lock(fake_uv, managed, spawn, point):
    """When only the provisioner is killed, the next one waits for the uv that goes on."""
    fake_uv.set(pause=point)
    victim = spawn(ENSURE)
    wait_until(fake_uv.paused_at(point).exists, victim)
    victim.kill()
    victim.wait()
    fake_uv.set(pause=None)
    heard = []

    def release(progress):
        heard.append(progress.detail)
        fake_uv.paused_at(point).unlink(missing_ok=True)

    calls = len(fake_uv.calls)
    assert ensure_runtime(on_progress=release).version == "0.6.0"
    assert heard[0] == "waiting for another process to install vllm-mlx"
    assert len(fake_uv.calls) > calls


def test_two_provisioners_install_once(fake_uv, managed, spawn):
    """Of several processes that need the runtime at once, one installs and all get it."""
    fake_uv.set(pause="pip-half")
    processes = [spawn(ENSURE) for _ in range(4)]
    wait_until(fake_uv.paused_at("pip-half").exists)
    fake_uv.paused_at("pip-half").unlink()
    for process in processes:
        said, errors = process.communicate(timeout=120)
        assert said.strip() == str(managed / "bin" / "vllm-mlx"), errors
    assert fake_uv.commands == ["venv", "pip"]


class StopHereError(Exception):
    pass


def test_an_installation_can_be_cancelled(fake_uv, managed):
    """An exception of `on_progress` ends uv, passes through, and a later call goes on."""
    fake_uv.set(pause="pip-half")
    before = psutil.Process().children()  # of other tests, such as multiprocessing's tracker

    def cancel(_progress):
        if fake_uv.paused_at("pip-half").exists():
            raise StopHereError

    with pytest.raises(StopHereError):
        ensure_runtime(on_progress=cancel)
    assert set(psutil.Process().children()) <= set(before)
    fake_uv.set(pause=None)
    assert ensure_runtime().version == "0.6.0"


def test_the_marker_may_be_nonsense(fake_uv, managed):
    """A marker that cannot be read counts as none: the install is tested and marked anew."""
    runtime = ensure_runtime()
    marker = managed / ".langchain-car-vllm.json"
    marker.write_text(json.dumps(["what?"]))
    assert ensure_runtime() == runtime
    assert read_marker(managed).state == "complete"
    assert fake_uv.commands == ["venv", "pip"]
