"""Releases of this package that run side by side: they see, stop, count and replace each other."""

import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.support import FAST, Fake, altered_supervisor, ask, eventually
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.errors import PackageChangedError, ServerError
from langchain_car_vllm.server import ServerSpec, lease, running_servers, stop_server
from langchain_car_vllm.server.directory import ServerDirectory, server_directory
from langchain_car_vllm.server.process import boot_id, host_name, machine_id
from langchain_car_vllm.server.state import read_any_state, read_header, read_state
from langchain_car_vllm.server.supervision import supervised_servers
from langchain_car_vllm.version import VERSION

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASES = sorted(path.name for path in GOLDEN.glob("protocol-*"))
FOREIGN = "f" * 16

StartOld = Callable[..., ServerDirectory]


@pytest.fixture
def start_old(fake: Fake) -> Iterator[StartOld]:
    """Starts the supervisor of another release, with a server that answers."""
    started: list[subprocess.Popen[str]] = []

    def start(
        release: str, directory: ServerDirectory, spec: ServerSpec, **changes: object
    ) -> ServerDirectory:
        directory.create()
        fields = {
            "host": host_name(),
            "machine": machine_id(),
            "boot_id": boot_id(),
            "name": spec.served_name,
            "source": spec.source,
            **changes,
        }
        script, tag = GOLDEN / "old_supervisor.py", secrets.token_hex(8)
        paths = [str(directory.path), str(GOLDEN / release)]
        rest = [json.dumps(fields), str(fake.binary), spec.served_name]
        process = subprocess.Popen(
            [sys.executable, str(script), tag, *paths, *rest], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return directory

    yield start
    for process in started:
        process.communicate(timeout=20)


@pytest.mark.parametrize("release", RELEASES)
def test_state_files_of_every_release_are_understood(release: str):
    """Each state that a release wrote is read in full, and by its header."""
    for path in sorted((GOLDEN / release).glob("*.json")):
        stored = json.loads(path.read_text())
        header = read_header(path)
        assert header is not None
        phase = "stopping" if stored["phase"] == "draining" else stored["phase"]
        assert (header.phase, header.generation) == (phase, stored["generation"])
        assert header.served_name == stored["name"]
        assert header.reservation == stored["reservation"]
        assert header.supervisor.tag == "SUPERVISOR"
        assert (header.server is not None) == (stored["server"] is not None)
        assert header.package is None


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("phase", ["load", "ready", "draining", "stopped"])
def test_state_of_a_later_protocol_shows_its_header(tmp_path: Path, release: str, phase: str):
    """Of a state that this version does not understand it still reads what is frozen."""
    stored = json.loads((GOLDEN / release / f"{phase}.json").read_text())
    frozen = ("generation", "phase", "name", "host", "machine", "boot_id", "supervisor", "server")
    later = {name: stored[name] for name in (*frozen, "reservation")}
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**later, "protocol": 99, "package": "9.0", "crashes": {"a": 1}}))
    assert read_state(path) is None
    header = read_any_state(path)
    assert header is not None
    assert (header.protocol, header.package) == (99, "9.0")
    assert header.reservation == stored["reservation"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    changes=st.dictionaries(
        st.sampled_from(
            [
                "protocol",
                "generation",
                "phase",
                "name",
                "supervisor",
                "server",
                "reservation",
                "package",
                "crashes",
                "port",
                "network",
                "boot_id",
                "error",
                "blocked_by",
            ]
        ),
        JSON,
        min_size=1,
    )
)
def test_odd_state_never_raises_and_never_lends_memory(
    tmp_path_factory: pytest.TempPathFactory, changes: dict
):
    """Whatever stands in a state file, readers get a state or None, and no negative reservation."""
    stored = json.loads((GOLDEN / RELEASES[0] / "ready.json").read_text())
    path = tmp_path_factory.mktemp("odd") / "state.json"
    path.write_text(json.dumps({**stored, "port": 1, **changes}))
    for read in (read_state, read_header, read_any_state):
        state = read(path)
        assert state is None or 0 <= state.reservation < 2**63


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("package", [None, "0.0.1"])
def test_idle_server_of_an_older_release_is_replaced(
    fake: Fake, start_old: StartOld, release: str, package: str | None
):
    """The next call after an upgrade gets a server of the release that it runs."""
    start_old(release, fake.directory(), fake.spec(), package=package)
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
        assert held.endpoint.generation == 2
        assert fake.state().package is not None


@pytest.mark.parametrize("release", RELEASES)
def test_busy_server_of_an_older_release_is_used_and_replaced_afterwards(
    fake: Fake, start_old: StartOld, release: str
):
    """Nobody is cut off for an upgrade."""
    start_old(release, fake.directory(), fake.spec())
    reading, writing = os.pipe()
    code = (
        "import fcntl, os, sys; d = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT);"
        "fcntl.flock(d, fcntl.LOCK_SH); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(fake.directory().lease_lock)]
    user = subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE)
    os.close(reading)
    assert user.stdout is not None
    assert user.stdout.readline() == b"held\n"
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
        assert held.endpoint.generation == 1
    os.close(writing)
    user.communicate()
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
        assert held.endpoint.generation == 2


@pytest.mark.parametrize("release", RELEASES)
def test_server_of_a_newer_release_is_kept(fake: Fake, start_old: StartOld, release: str):
    """A program that was not upgraded uses the newer server, and two never fight."""
    start_old(release, fake.directory(), fake.spec(), package="99.0")
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
        assert held.endpoint.generation == 1
    assert stop_server(fake.directory(), policy=FAST)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("protocol", [1, 99])
def test_server_of_another_version_is_seen_counted_and_stopped(
    fake: Fake, start_old: StartOld, release: str, protocol: int
):
    """`ps`, the memory budget and `stop` know servers of every version."""
    directory = start_old(release, server_directory(FOREIGN), fake.spec(), protocol=protocol)
    assert [(d.key, s.served_name) for d, s in running_servers()] == [
        (FOREIGN, fake.spec().served_name)
    ]
    reserving = supervised_servers("another", lambda state: state.reservation)
    assert [(d.key, s.reservation > 0) for d, s in reserving] == [(FOREIGN, True)]
    assert stop_server(directory, policy=FAST)
    assert running_servers() == []
    left = read_any_state(directory.state)
    assert left is not None
    assert left.phase == "stopped"


@pytest.mark.parametrize("release", RELEASES)
def test_lost_server_of_another_version_is_cleaned_up(
    fake: Fake, start_old: StartOld, release: str
):
    """What a killed supervisor of another version left is ended, and its file stays whole."""
    directory = start_old(
        release, server_directory(FOREIGN), fake.spec(), protocol=99, later_field={"kept": 1}
    )
    state = read_any_state(directory.state)
    assert state is not None
    assert state.server is not None
    os.kill(state.supervisor.pid, signal.SIGKILL)
    assert stop_server(directory, policy=FAST)
    assert not state.server.find()
    left = json.loads(directory.state.read_text())
    assert (left["phase"], left["reservation"], left["later_field"]) == ("stopped", 0, {"kept": 1})


@pytest.mark.parametrize("release", RELEASES)
def test_idle_server_of_another_version_makes_room(
    fake: Fake, start_old: StartOld, release: str, monkeypatch: pytest.MonkeyPatch
):
    """Two versions share one budget: the idle server of the other goes."""
    directory = start_old(release, server_directory(FOREIGN), fake.spec(), protocol=99)
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "2")
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
        left = read_any_state(directory.state)
        assert left is not None
        assert left.phase == "stopped"


NEWER = """
import langchain_car_vllm.version as version
import langchain_car_vllm.server.spec as spec
version.VERSION, spec.PROTOCOL = "9.9.9", 99
"""


def test_program_whose_package_was_upgraded_is_told_to_restart(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A supervisor of another protocol refuses the order instead of leaving the program waiting."""
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(altered_supervisor(tmp_path, NEWER)))
    with pytest.raises(
        PackageChangedError, match=r"to 9\.9\.9 while this program was running"
    ) as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert caught.value.hint == "restart this program"
    assert not caught.value.is_retryable


DROPPED = """
from langchain_car_vllm.server import spec
taken = spec.ServerSpec.from_dict.__func__
def without(cls, values):
    values = dict(values)
    values["field_of_yesterday"] = 1
    return taken(cls, values)
spec.ServerSpec.from_dict = classmethod(without)
"""


def test_order_with_a_field_that_is_gone_is_told(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A setting that another release no longer knows is not left out in silence."""
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(altered_supervisor(tmp_path, DROPPED)))
    with pytest.raises(PackageChangedError):
        lease(fake.spec(), policy=FAST).__enter__()


def test_version_is_that_of_the_project():
    """The code carries its version, and it is the one that is released."""
    project = tomllib.loads((GOLDEN.parents[1] / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_timings_of_another_release_are_left_out():
    """A timing more or less is no reason to refuse an order."""
    values = FAST.to_dict()
    del values["settle"]
    assert type(FAST).from_dict({**values, "new_timing": 1}).stop_grace == FAST.stop_grace


def test_state_that_stays_unreadable_is_an_error(fake: Fake):
    """Nobody waits in silence for a supervisor whose state says nothing."""
    policy = dataclasses.replace(FAST, handshake=1.0)
    with lease(fake.spec(), policy=FAST):
        supervisor = fake.state().supervisor.pid
        os.kill(supervisor, signal.SIGSTOP)
    stored = fake.directory().state.read_text()
    try:
        fake.directory().state.write_text("{")
        with pytest.raises(ServerError, match="cannot be read"):
            lease(fake.spec(), policy=policy).__enter__()
        fake.directory().state.write_text(json.dumps({**json.loads(stored), "protocol": 99}))
        with pytest.raises(PackageChangedError):
            lease(fake.spec(), policy=policy).__enter__()
    finally:
        os.kill(supervisor, signal.SIGCONT)
    eventually(lambda: read_state(fake.directory().state), "the state to be put back")
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.generation == 1
