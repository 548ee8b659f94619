"""Upgrades: refused under a running server, and a failed one costs nothing."""

import subprocess
import sys

import psutil
import pytest
from unit.runtime.process_control import end_tree, wait_until
from unit.runtime.provisioning import make_foreign

from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime import ensure_runtime, requirements, upgrade_runtime
from langchain_car_vllm.runtime.marker import read_marker


def test_nothing_changes_under_a_running_server(fake_uv, managed, spawn):
    """While a process runs from the environment, an upgrade is refused and nothing is touched."""
    ensure_runtime()
    before = read_marker(managed)
    code = "import subprocess; subprocess.run([{!r}, '-c', 'import time; time.sleep(60)'])"
    holder = spawn(code.format(str(managed / "bin" / "python")))
    wait_until(lambda: psutil.Process(holder.pid).children(), holder)
    with pytest.raises(ProvisionError, match="runs from") as caught:
        upgrade_runtime()
    assert caught.value.step == "in-use"
    assert read_marker(managed) == before
    end_tree(holder)
    assert upgrade_runtime().version == "0.6.0"


def test_a_server_is_known_by_its_script(fake_uv, managed, spawn, home, monkeypatch):
    """A Python that hides where it lies, as on a Mac, is known by its script, links or not."""
    ensure_runtime()
    program = "import sys; sys.stdin.read()"
    words = [sys.executable, "-c", program, "marker", "run", str(managed / "bin" / "vllm-mlx")]
    holder = subprocess.Popen(words[:4] + words[5:], stdin=subprocess.PIPE)
    link = home.parent / "linked-home"
    link.symlink_to(home)
    monkeypatch.setenv("HOME", str(link))
    try:
        with pytest.raises(ProvisionError, match=f"process {holder.pid} runs from"):
            upgrade_runtime()
    finally:
        holder.communicate()


def test_an_upgrade_moves_to_the_locked_set(fake_uv, managed, monkeypatch):
    """An upgrade installs the wanted requirements over an older install."""
    monkeypatch.setenv("CAR_VLLM_MLX_SPEC", "vllm-mlx==0.4.1")
    assert ensure_runtime().version == "0.4.1"
    monkeypatch.delenv("CAR_VLLM_MLX_SPEC")
    assert ensure_runtime().version == "0.4.1"
    assert upgrade_runtime().version == "0.6.0"
    assert read_marker(managed).requirements.startswith("lock ")


@pytest.mark.parametrize("owner", ["ours", "car"])
def test_packages_of_a_former_python_go(fake_uv, managed, home, owner):
    """A new minor version leaves them behind, as large as those that are used; CAR's are CAR's."""
    if owner == "car":
        make_foreign(managed, fake_uv, version="0.6.0")
    ensure_runtime()
    (elsewhere := home / "elsewhere").mkdir()
    former, link = managed / "lib" / "python3.9", managed / "lib" / "python3.8"
    (former / "site-packages" / "mlx").mkdir(parents=True)
    link.symlink_to(elsewhere)
    assert upgrade_runtime().version == "0.6.0"
    assert former.exists() is (owner == "car")
    assert link.exists()
    assert ensure_runtime().version == "0.6.0"


def test_a_list_of_packages_that_is_gone_is_told(fake_uv, managed, monkeypatch, tmp_path):
    """As under a supervisor that waits while its virtual environment is removed."""
    monkeypatch.setattr(requirements, "LOCK", tmp_path / "requirements.lock")
    with pytest.raises(ProvisionError, match=r"requirements\.lock`: No such file") as caught:
        ensure_runtime()
    assert caught.value.hint.endswith("restart it")


def test_a_failed_upgrade_keeps_what_works(fake_uv, managed):
    """An upgrade that cannot download leaves the former install in use."""
    runtime = ensure_runtime()
    fake_uv.set(fail="pip", says="dns error")
    with pytest.raises(ProvisionError):
        upgrade_runtime()
    fake_uv.set(fail=None)
    assert ensure_runtime() == runtime
    assert fake_uv.commands == ["venv", "pip", "pip"]


@pytest.mark.parametrize("point", ["pip-begin", "pip-half"])
def test_a_killed_upgrade_keeps_what_works(fake_uv, managed, monkeypatch, spawn, point):
    """Killed before it changed anything, an upgrade costs nobody the former install."""
    monkeypatch.setenv("CAR_VLLM_MLX_SPEC", "vllm-mlx==0.5.0")
    ensure_runtime()
    monkeypatch.delenv("CAR_VLLM_MLX_SPEC")
    fake_uv.set(pause=point)
    victim = spawn("from langchain_car_vllm.runtime import upgrade_runtime; upgrade_runtime()")
    wait_until(fake_uv.paused_at(point).exists, victim)
    end_tree(victim)
    fake_uv.set(pause=None, fail="pip", says="dns error")
    if point == "pip-begin":
        assert ensure_runtime().version == "0.5.0"
        assert read_marker(managed).state == "complete"
    else:
        with pytest.raises(ProvisionError, match="dns error"):
            ensure_runtime()
    fake_uv.set(fail=None)
    assert upgrade_runtime().version == "0.6.0"


def test_a_cancelled_upgrade_keeps_what_works(fake_uv):
    """Ctrl-C under an upgrade leaves the former install in use."""
    former = ensure_runtime()
    fake_uv.set(pause="pip-begin")

    def cancel(_progress):
        if fake_uv.paused_at("pip-begin").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upgrade_runtime(on_progress=cancel)
    fake_uv.set(fail="pip", pause=None)
    assert ensure_runtime(auto_install=False) == former


def test_where_nobody_tells_who_uses_it_nothing_changes(fake_uv, managed, monkeypatch):
    """A sandbox may keep a program from the list of processes."""
    ensure_runtime()

    def deny():
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(psutil, "pids", deny)
    with pytest.raises(ProvisionError, match="does not show which processes run from") as caught:
        upgrade_runtime()
    assert "sandbox" in caught.value.hint
    assert fake_uv.commands == ["venv", "pip"]
