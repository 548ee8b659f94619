"""fork, spawn, threads, asyncio, interpreter exit and vanishing environments."""

import asyncio
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import packaging
import psutil
import pytest
import uv
from faults.support import FAST, ClientProcess, Fake, altered_supervisor, ask

import langchain_car_vllm
from langchain_car_vllm.server import ServerSpec, alease, lease
from langchain_car_vllm.server.locks import close_lock, open_lock, try_exclusive


def in_child(spec: ServerSpec) -> None:
    with lease(spec, policy=FAST) as held:
        assert ask(held.endpoint)
        assert held.endpoint.generation == 1


def run_child(method: str, spec: ServerSpec) -> None:
    child = multiprocessing.get_context(method).Process(target=in_child, args=(spec,))
    child.start()
    child.join(20)
    assert child.exitcode == 0


def test_fork_then_use_on_both_sides(fake: Fake):
    """A forked child takes a lease of its own, and its end does not release the parent's."""
    spec = fake.spec(keep_alive=0.0)
    with lease(spec, policy=FAST) as held:
        run_child("fork", spec)
        assert ask(held.endpoint)
        descriptor = open_lock(fake.directory().lease_lock)
        assert not try_exclusive(descriptor)
        close_lock(descriptor)


PRELOAD = """import os, signal, sys
from langchain_car_vllm import ChatVllmMlx
model = ChatVllmMlx(model=sys.argv[1], max_tokens=3)
model.warm_up()
child = os.fork()
signal.alarm(150)
print(model.invoke("hi").text, flush=True)
if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_workers_may_be_forked_right_after_the_model_was_warmed_up(fake: Fake):
    """As `gunicorn --preload` does, while what a first call needs may still be imported."""
    program = [sys.executable, "-c", PRELOAD, str(fake.model)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["tok0", "tok1", "tok2"] * 2), done.stderr


def test_spawned_child_shares_the_server(fake: Fake):
    """A spawned child finds the parent's server."""
    with lease(fake.spec(), policy=FAST):
        run_child("spawn", fake.spec())


def test_forked_child_of_a_killed_holder_keeps_no_lease(fake: Fake):
    """The lease of a killed client is free although a child that it forked lives on."""
    then = """import os
    if not os.fork(): sys.stdin.read(); os._exit(0)
    print('forked', flush=True)"""
    client = ClientProcess(fake, then, keep_alive=0.0)
    assert client.read() == "began"
    assert client.read() == "leased 1"
    assert client.read() == "forked"
    os.kill(client.pid, 9)
    fake.wait_until_unsupervised()
    client.kill()


def test_second_event_loop_works(fake: Fake):
    """A second `asyncio.run` in the same process gets the server as the first did."""

    async def once() -> int:
        async with alease(fake.spec(), policy=FAST) as held:
            return held.endpoint.generation

    assert asyncio.run(once()) == asyncio.run(once()) == 1


def test_interpreter_exit_does_not_wait_for_a_load(fake: Fake):
    """A script that ends while a start it began is under way ends at once."""
    fake.switch(load_gate=fake.gate("load"))
    code = f"""
from langchain_car_vllm.server import Policy, ServerSpec, lease
policy = Policy.from_dict({FAST.to_dict()!r})
spec = ServerSpec(source={str(fake.model)!r}, served_name={str(fake.model)!r}, keep_alive=0.0)
def leave(progress):
    if progress.stage == "load":
        print("gave up")
        raise SystemExit
lease(spec, policy=policy, on_progress=leave).__enter__()
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "gave up\n", done.stderr
    assert time.monotonic() - began < 5
    fake.wait_for_phase("load")
    fake.open_gate("load")
    fake.wait_until_unsupervised()


def test_supervisor_outlives_its_virtual_environment(fake: Fake, tmp_path: Path):
    """The environment that started the supervisor may vanish while it loads."""
    fake.switch(load_gate=fake.gate("load"))
    site = tmp_path / "venv-site"
    package = Path(langchain_car_vllm.__file__).parent
    shutil.copytree(package, site / "langchain_car_vllm")
    code = f"""
from langchain_car_vllm.server import Policy, ServerSpec, lease
policy = Policy.from_dict({FAST.to_dict()!r})
spec = ServerSpec(source={str(fake.model)!r}, served_name={str(fake.model)!r}, keep_alive=60.0)
def leave(progress):
    if progress.stage == "load":
        raise SystemExit
lease(spec, policy=policy, on_progress=leave).__enter__()
"""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-P", "-c", code], env=environment, check=True, timeout=20)
    fake.wait_for_phase("load")
    shutil.rmtree(site)
    fake.open_gate("load")
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.generation == 1
        assert ask(held.endpoint)


def test_virtual_environment_that_is_deleted_while_the_model_is_downloaded(
    fake: Fake, tmp_path: Path
):
    """A real environment vanishes before the server is spawned: nothing of it is needed by then."""
    real = fake.binary.rename(fake.binary.with_name("real"))
    fake.binary.write_text(f'#!/bin/sh\nexec "{real}" "$@"\n')
    fake.binary.chmod(0o755)
    fake.switch(download_from=str(fake.model), download_gate=fake.gate("download"))
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    site = next(environment.glob("lib/python*/site-packages"))
    for module in (langchain_car_vllm, psutil, packaging, uv):
        folder = Path(module.__file__).parent
        shutil.copytree(folder, site / folder.name)
    code = f"""
from langchain_car_vllm.server import Policy, ServerSpec, lease
policy = Policy.from_dict({FAST.to_dict()!r})
spec = ServerSpec(source="org/model", served_name="org/model", keep_alive=0.1)
def leave(progress):
    if progress.stage == "download":
        raise SystemExit
lease(spec, policy=policy, on_progress=leave).__enter__()
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    subprocess.run(
        [environment / "bin" / "python", "-P", "-c", code], env=clean, check=True, timeout=30
    )
    changes = {"source": "org/model", "served_name": "org/model", "keep_alive": 0.1}
    fake.wait_for_phase("download", **changes)
    shutil.rmtree(environment)
    fake.open_gate("download")
    with lease(ServerSpec(**changes), policy=FAST) as held:
        assert held.endpoint.generation == 1
        assert ask(held.endpoint)
    fake.wait_until_unsupervised(**changes)
    assert fake.state(**changes).reason == "idle"


def test_module_in_the_current_folder_does_not_hijack_the_supervisor(
    fake: Fake, tmp_path: Path, monkeypatch
):
    """A `psutil.py` beside the user's script is not imported."""
    (tmp_path / "psutil.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)


def test_two_versions_of_the_binary_are_two_servers(fake: Fake, tmp_path: Path, monkeypatch):
    """`CAR_VLLM_MLX_BIN` is part of the key."""
    with lease(fake.spec(), policy=FAST) as first:
        other = tmp_path / "fake" / "other" / "bin" / "vllm-mlx"
        shutil.copytree(fake.binary.parents[1], other.parents[1])
        monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(other))
        with lease(fake.spec(), policy=FAST) as second:
            assert first.endpoint.base_url != second.endpoint.base_url
        from langchain_car_vllm.server import stop_server

        stop_server(fake.directory(), policy=FAST)
        monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(fake.binary))


CLOCK = """
def shifted(unit, real, kind):
    def read(*args):
        jump = float(open({jump!r}).read()) if os.path.exists({jump!r}) else 0.0
        return real(*args) + kind(jump * unit)
    return read
time.time = shifted(1, time.time, float)
time.time_ns = shifted(10**9, time.time_ns, int)
"""


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_jump_of_the_wall_clock_changes_nothing(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
):
    """Neither does the server stop too early nor does it stay for too long."""
    clock = tmp_path / "jump"
    python = altered_supervisor(tmp_path, CLOCK.format(jump=str(clock)))
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(python))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + (jump if clock.exists() else 0.0))
    with lease(fake.spec(keep_alive=60.0), policy=FAST) as held:
        clock.write_text(str(jump))
        assert ask(held.endpoint)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        with lease(fake.spec(keep_alive=60.0), policy=FAST) as held:
            assert held.endpoint.generation == 1
    with lease(fake.spec(keep_alive=0.1), policy=FAST):
        pass
    fake.wait_until_unsupervised()
    assert fake.state().reason == "idle"


def test_wall_clock_is_not_asked(fake: Fake):
    """Idleness, stalls and backoff are measured on a clock that no one can set."""
    package = Path(langchain_car_vllm.__file__).parent / "server"
    users = {p.name for p in package.glob("*.py") if "time.time()" in p.read_text()}
    assert not users


def test_no_zombies(fake: Fake):
    """Starting and stopping leaves this process without children."""
    with lease(fake.spec(keep_alive=0.0), policy=FAST):
        pass
    fake.wait_until_unsupervised()
    statuses = [child.status() for child in psutil.Process().children(recursive=True)]
    assert psutil.STATUS_ZOMBIE not in statuses


def test_child_that_leaves_its_parents_lease_harms_nobody(fake: Fake):
    """A child forked inside a lease may run to the end of the block: the parent keeps it."""
    spec = fake.spec(keep_alive=0.0)
    child = None
    with lease(spec, policy=FAST) as held:
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            assert ask(held.endpoint)
            descriptor = open_lock(fake.directory().lease_lock)
            assert not try_exclusive(descriptor)
            close_lock(descriptor)
    if not child:
        os._exit(0)


def test_removed_log_ends_no_server(fake: Fake):
    """Somebody who deletes the log does not stop the server."""
    with lease(fake.spec(), policy=FAST) as held:
        fake.directory().log.unlink()
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert ask(held.endpoint)
