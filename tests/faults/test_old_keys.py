"""What becomes of the folders and the saved prefix caches of keys that nobody uses."""

import os
import signal
import time

import pytest
from faults.support import FAST, Fake, eventually, processes_of

from langchain_car_vllm.server import lease, stop_server
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.supervisor import old_keys
from langchain_car_vllm.server.supervisor.old_keys import remove_old_keys

DAY = 86_400.0
LIFETIME = 30 * DAY


def stopped(fake: Fake, name: str, *, days: float = 0.0, cached: int = 10) -> ServerDirectory:
    """Return the directory of a server that saved its cache and ended some days ago."""
    directory = fake.directory(server_env=(("OF", name),))
    with lease(fake.spec(server_env=(("OF", name),)), policy=FAST):
        save(directory, cached)
    stop_server(directory, policy=FAST)
    age(directory, days)
    return directory


def save(directory: ServerDirectory, size: int) -> None:
    folder = directory.prefix_caches / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "entry_0.safetensors").write_bytes(b"x" * size)


def age(directory: ServerDirectory, days: float) -> None:
    if days:
        at = time.time() - days * DAY
        os.utime(directory.state, (at, at))


def test_what_nobody_has_used_for_a_month_goes(fake: Fake):
    """With its logs; what was used since stays, and a lifetime of 0 keeps all."""
    own, newer, old = (stopped(fake, name) for name in ("own", "newer", "old"))
    for directory, days in ((own, 99), (old, 31), (newer, 29)):
        age(directory, days)
    remove_old_keys(own, 0)
    assert old.path.exists()
    remove_old_keys(own, LIFETIME)
    assert not old.path.exists()
    assert own.prefix_caches.exists()
    assert newer.prefix_caches.exists()


def test_the_oldest_caches_go_beyond_the_limit(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """The own one counts first, one that was saved just now after it; logs stay."""
    own, oldest = stopped(fake, "own", days=9), stopped(fake, "oldest", days=3)
    older, latest = stopped(fake, "older", days=2), stopped(fake, "latest")
    monkeypatch.setattr(old_keys, "_MOST_CACHED", 25)
    remove_old_keys(own, 0)
    assert own.prefix_caches.exists()
    assert latest.prefix_caches.exists()
    for directory in (older, oldest):
        assert not directory.prefix_caches.exists()
        assert directory.log.exists()


def test_what_is_in_use_stays(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """However long ago its supervisor said something, and however much all take."""
    monkeypatch.setattr(old_keys, "_MOST_CACHED", 0)
    own = fake.directory(server_env=(("OF", "own"),))
    directory = fake.directory(server_env=(("OF", "busy"),))
    with lease(fake.spec(server_env=(("OF", "busy"),)), policy=FAST):
        save(directory, 10)
        age(directory, 99)
        remove_old_keys(own, LIFETIME)
        assert directory.prefix_caches.exists()
    remove_old_keys(own, LIFETIME)  # idle, and still there
    assert directory.prefix_caches.exists()


def test_what_a_killed_supervisor_left_goes_too(fake: Fake):
    """Nobody said that it has stopped: a machine that is switched off says nothing."""
    directory = fake.directory(server_env=(("OF", "lost"),))
    with lease(fake.spec(server_env=(("OF", "lost"),)), policy=FAST):
        state = fake.state(server_env=(("OF", "lost"),))
    os.kill(state.supervisor.pid, signal.SIGKILL)
    eventually(lambda: not processes_of(fake.root), "the last process to end")
    age(directory, 31)
    remove_old_keys(fake.directory(server_env=(("OF", "own"),)), LIFETIME)
    assert not directory.path.exists()
